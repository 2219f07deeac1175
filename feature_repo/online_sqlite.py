"""The local profile's online store: packed rows in one SQLite file, a table a view (see feature_repo/online_rows.py).

A write-ahead log lets a server go on reading while a day is written; every thread has a connection of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from feast import Entity, FeatureView, RepoConfig
from feast.repo_config import FeastConfigBaseModel
from pydantic import StrictStr

from datasets.errors import DataError
from feature_repo.online_rows import Row, RowOnlineStore

BUSY_S = 30
_COLUMNS = ["entity_key", "event_ms", "row"]


class SqliteRowOnlineStoreConfig(FeastConfigBaseModel):
    """`path`: the file, absolute."""

    type: StrictStr = "feature_repo.online_sqlite.SqliteRowOnlineStore"
    path: StrictStr


class SqliteRowOnlineStore(RowOnlineStore):
    """One table a view (entity_key, event_ms, row) in one file, one connection a thread, one writer at a time."""

    def __init__(self) -> None:
        self._local = threading.local()

    def put_rows(self, config: RepoConfig, view: str, rows: Sequence[Row]) -> None:
        with self._connection(config) as connection:  # one transaction
            connection.executemany(
                f"INSERT INTO {_table(config, view)} VALUES (?, ?, ?) ON CONFLICT (entity_key) DO UPDATE"
                " SET event_ms = excluded.event_ms, row = excluded.row WHERE excluded.event_ms >= event_ms",
                rows,
            )

    def get_rows(self, config: RepoConfig, views: Sequence[str], keys: Sequence[bytes]) -> list[list[bytes | None]]:
        marks = ", ".join("?" * len(keys))
        found = [
            dict(
                self._connection(config).execute(
                    f"SELECT entity_key, row FROM {_table(config, view)} WHERE entity_key IN ({marks})", keys
                )
            )
            for view in views
        ]
        return [[rows.get(key) for rows in found] for key in keys]

    def forget(self, config: RepoConfig, key: bytes, *, dry_run: bool) -> int:
        """Also from the bytes of the file: SQLite would leave deleted rows in free pages and in its log."""
        if not Path(config.online_store.path).is_file():
            return 0
        connection = self._connection(config)
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = [f'"{name}"' for (name,) in names if name.startswith(f"{config.project}_")]
        found = sum(
            connection.execute(f"SELECT count(*) FROM {table} WHERE entity_key = ?", (key,)).fetchone()[0]
            for table in tables
        )
        if dry_run or not found:
            return found
        connection.execute("PRAGMA secure_delete = ON")
        with connection:
            for table in tables:
                connection.execute(f"DELETE FROM {table} WHERE entity_key = ?", (key,))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return found

    @contextlib.contextmanager
    def lock(self, config: RepoConfig, keys: Sequence[bytes]) -> Iterator[None]:
        """One lock for all keys: SQLite has one writer at a time anyhow."""
        with Path(f"{config.online_store.path}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        connection = self._connection(config)
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            for view in tables_to_delete:
                connection.execute(f"DROP TABLE IF EXISTS {_table(config, view.name)}")
            for view in tables_to_keep:
                table = _table(config, view.name)
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table}"
                    " (entity_key BLOB PRIMARY KEY, event_ms INTEGER NOT NULL, row BLOB NOT NULL)"
                )
                if [column[1] for column in connection.execute(f"PRAGMA table_info({table})")] != _COLUMNS:
                    raise DataError(
                        f"{config.online_store.path} holds rows of an earlier layout: delete it and fill it again with"
                        " `onerec features materialize`"
                    )

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        self._connection(config).close()
        del self._local.connection
        for suffix in ("", "-wal", "-shm", ".lock"):
            Path(f"{config.online_store.path}{suffix}").unlink(missing_ok=True)

    def _connection(self, config: RepoConfig) -> sqlite3.Connection:
        if (found := getattr(self._local, "connection", None)) is None:
            found = self._local.connection = sqlite3.connect(config.online_store.path, timeout=BUSY_S)
        return found


def _table(config: RepoConfig, view: str) -> Any:
    return f'"{config.project}_{view}"'
