"""Users who asked to be forgotten: their rows are left out of every ingest, so that no backfill brings them back.

    tombstones = Tombstones.read(base)                  of the workspace's folder <base>/tombstones
    tombstones.add([42], now).write(base)
    query = tombstones.without("SELECT * FROM log")     the same rows, but those of forgotten users

Only salted hashes are kept: a tombstone does not tell whom it is of.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from datasets.errors import DataError

FILE = Path("tombstones") / "users.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tombstones:
    """`hashes`: sha256 of salt and user id -> when it was asked for (ISO, UTC)."""

    salt: str
    hashes: dict[str, str]

    @classmethod
    def read(cls, base: Path) -> Tombstones:
        """Of a workspace; none when nobody was forgotten. DataError when damaged: never ingest without it."""
        file = base / FILE
        try:
            return cls(**json.loads(file.read_text()))
        except FileNotFoundError:
            return cls(salt="", hashes={})
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(
                f"{file} is damaged ({error}): without it forgotten users would come back; restore it from a backup"
            ) from None

    def add(self, users: Iterable[int], now: dt.datetime) -> Tombstones:
        """With these users; one who has a tombstone keeps its first time."""
        salt = self.salt or secrets.token_hex(16)
        made = Tombstones(salt=salt, hashes={})
        new = {made.hash(user): now.isoformat(timespec="seconds") for user in users}
        return dataclasses.replace(made, hashes={**new, **self.hashes})

    def write(self, base: Path) -> None:
        """Write the file below `base`; a reader sees the old or the new one."""
        file = base / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_name(f".{file.name}.tmp")
        with open(staged, "w") as f:
            json.dump(dataclasses.asdict(self), f, indent=1, sort_keys=True)
            f.flush()
            os.fsync(f.fileno())
        os.replace(staged, file)

    def hash(self, user: int) -> str:
        return hashlib.sha256(f"{self.salt}:{user}".encode()).hexdigest()

    def __contains__(self, user: int) -> bool:
        return bool(self.hashes) and self.hash(user) in self.hashes

    def digest(self) -> str:
        """Of whom it holds; "" for nobody, so that a workspace without tombstones is as it always was."""
        return hashlib.sha256("".join(sorted(self.hashes)).encode()).hexdigest() if self.hashes else ""

    def without(self, query: str) -> str:
        """The query's rows without those of forgotten users (DuckDB; rows without a user id stay: quarantine)."""
        if not self.hashes:
            return query
        known = ", ".join(f"'{value}'" for value in sorted(self.hashes))
        hashed = f"sha256('{self.salt}:' || CAST(user_id AS BIGINT)::VARCHAR)"
        return f"SELECT * FROM ({query}) WHERE user_id IS NULL OR {hashed} NOT IN ({known})"
