"""The manifest of a release: what belongs together, and the check that it is all there and nothing else.

    from releases.manifest import verify
    manifest = verify(Path("var/simulated/store/releases/2022-05-05-0123456789ab"))

A release folder is {manifest.json, tokenizer/*, model/*, reward/*, items.parquet, training_state/*}. Its id is
`<day>-<first 12 hex of the content digest>`; the content digest covers path, size and sha256 of every file and
nothing else, so the same contents have the same id whenever and wherever they were made.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from releases.object_store import ObjectStore, check_key, digest_bytes, digest_file

MANIFEST = "manifest.json"
SCHEMA = 1
REQUIRED = (
    "items.parquet",
    "model/config.json",
    "model/model.safetensors",
    "tokenizer/sid_table.parquet",
    "tokenizer/trie.safetensors",
)
_RELEASE_ID = re.compile(r"(\d{4}-\d{2}-\d{2})-([0-9a-f]{12})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a release: path relative to its folder, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The metadata of a release; `files` are sorted by path."""

    release_id: str
    created_at: str
    source: str
    data_interval: dict[str, str]
    data: dict[str, Any]
    parents: list[str]
    code_commit: str
    environment: dict[str, Any]
    seed: int
    summaries: dict[str, Any]
    metrics: dict[str, Any]
    files: list[FileEntry]
    gate: dict[str, Any] | None = None
    schema: int = SCHEMA

    @property
    def day(self) -> str:
        return self.data_interval["start"]

    def to_bytes(self) -> bytes:
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Parse and check the form; ValueError names `where` and the field at fault."""
        try:
            raw = json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: not a JSON manifest ({error}); publish the release again") from None
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            odd = sorted(names ^ set(raw)) if isinstance(raw, dict) else "everything"
            raise ValueError(f"{where}: missing or unknown fields {odd}; another version wrote it, publish again")
        if raw["schema"] != SCHEMA:
            raise ValueError(f"{where}: schema {raw['schema']}, this code reads {SCHEMA}; use the matching code")
        files = [FileEntry(**entry) for entry in raw.pop("files")]
        for entry in files:
            check_key(entry.path)
        manifest = cls(**raw, files=files)
        digest = content_digest(files)
        if manifest.release_id != make_release_id(manifest.day, digest):
            raise ValueError(
                f"{where}: release {manifest.release_id} does not fit its file list (digest {digest[:12]});"
                " the manifest was edited: publish again"
            )
        return manifest


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, UTF-8, one newline at the end; equal values give equal bytes. NaN is refused."""
    try:
        return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()
    except ValueError as error:
        raise ValueError(f"metadata hold NaN or infinity ({error}); write null for an undefined number") from None


def content_digest(files: Iterable[FileEntry]) -> str:
    """sha256 over (path, size, sha256) of the files, sorted by path."""
    rows = sorted((f.path, f.size, f.sha256) for f in files)
    return digest_bytes(canonical_json(rows))


def make_release_id(day: str, digest: str) -> str:
    """`<day>-<12 hex>`; ValueError when the day is no ISO date."""
    return f"{dt.date.fromisoformat(day).isoformat()}-{digest[:12]}"


def check_release_id(release_id: str) -> str:
    """The id itself when it has the form of one, else ValueError."""
    if not _RELEASE_ID.fullmatch(release_id):
        raise ValueError(f"{release_id!r} is not a release id (YYYY-MM-DD-<12 hex digits>); see `onerec release list`")
    return release_id


def describe_files(files: Mapping[str, Path]) -> list[FileEntry]:
    """Entries of source files {path in the release: local file}; ValueError names a missing or required one."""
    if missing := [path for path in REQUIRED if path not in files]:
        raise ValueError(f"a release needs {missing}; the step that writes them did not run or wrote elsewhere")
    entries = []
    for path, local in sorted(files.items()):
        if check_key(path) == MANIFEST:
            raise ValueError(f"{MANIFEST} is written by publish itself; leave it out of the files")
        if not local.is_file():
            raise ValueError(f"{path}: {local} is not a file; run the step that writes it again")
        size, sha256 = digest_file(local)
        entries.append(FileEntry(path=path, size=size, sha256=sha256))
    return entries


def verify(folder: Path) -> Manifest:
    """Read the manifest of a release folder and check every file by size and sha256.

    Raises ValueError that names the file and says what was expected and what was found: a missing file, another size,
    another digest (a mixed or damaged set), a file the manifest does not know, a link, a path outside the folder.
    """
    where = f"{folder}/{MANIFEST}"
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is not a release: it has no {MANIFEST}; give a folder that publish wrote") from None
    manifest = Manifest.from_bytes(data, where)
    for entry in manifest.files:
        _verify_file(folder, entry, manifest.release_id)
    known = {entry.path for entry in manifest.files} | {MANIFEST}
    found = {os.path.relpath(os.path.join(base, f), folder) for base, _, names in os.walk(folder) for f in names}
    if extra := sorted(found - known):
        raise ValueError(f"release {manifest.release_id}: {extra[0]} is not in the manifest; refusing a mixed set")
    if missing := [path for path in REQUIRED if path not in known]:
        raise ValueError(f"release {manifest.release_id}: the manifest lists no {missing[0]}; publish again")
    return manifest


def _verify_file(folder: Path, entry: FileEntry, release_id: str) -> None:
    name, path = f"release {release_id}: {entry.path}", folder / entry.path
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
        raise ValueError(f"{name} is a link or leaves the release folder; refusing it")
    if not path.is_file():
        raise ValueError(f"{name} is missing (expected {entry.size} bytes); restore it or choose another release")
    if (size := path.stat().st_size) != entry.size:
        raise ValueError(f"{name}: expected {entry.size} bytes, got {size}; refusing a mixed or damaged release")
    if (sha256 := digest_file(path)[1]) != entry.sha256:
        raise ValueError(f"{name}: expected sha256 {entry.sha256}, got {sha256}; refusing a mixed or damaged release")


def load_release(store: ObjectStore, release_id: str) -> tuple[Path, Manifest]:
    """The folder and the verified manifest of a published release; ValueError when it is unknown or damaged."""
    check_release_id(release_id)
    if store.get(f"releases/{release_id}/{MANIFEST}") is None:
        raise ValueError(f"there is no release {release_id} in this store; see `onerec release list`")
    folder = store.local(f"releases/{release_id}")
    manifest = verify(folder)
    if manifest.release_id != release_id:
        raise ValueError(f"folder {release_id} holds release {manifest.release_id}; restore the right folder")
    return folder, manifest
