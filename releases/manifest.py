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

from releases.contents import check_contents
from releases.object_store import ObjectStore, check_key, digest_bytes, digest_file
from releases.signing import SIGNATURES, signature_name, verify_signature

MANIFEST = "manifest.json"
SCHEMA = 1
LARGEST = 16 << 20  # bytes of a manifest; a real one has a few ten thousand
REQUIRED = (
    "items.parquet",
    "model/config.json",
    "model/model.safetensors",
    "tokenizer/sid_table.parquet",
    "tokenizer/trie.safetensors",
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(SIGNATURES + r"/[0-9a-f]{64}\.sig")  # also those of a publisher that lost a race
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
        if len(data) > LARGEST:
            raise ValueError(f"{where}: {len(data):,} bytes, a manifest has at most {LARGEST:,}; refusing it")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not a JSON manifest ({error}); publish the release again") from None
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            odd = sorted(names ^ set(raw)) if isinstance(raw, dict) else "everything"
            raise ValueError(f"{where}: missing or unknown fields {odd}; another version wrote it, publish again")
        if raw["schema"] != SCHEMA:
            raise ValueError(f"{where}: schema {raw['schema']}, this code reads {SCHEMA}; use the matching code")
        if odd := [name for name, kind in _KINDS.items() if not isinstance(raw[name], kind)]:
            raise ValueError(f"{where}: field {odd[0]} is of the wrong kind; the manifest was edited, publish again")
        files = [_entry(entry, where) for entry in raw.pop("files")]
        if len({entry.path for entry in files}) != len(files):
            raise ValueError(f"{where}: a file is listed twice; the manifest was edited, publish again")
        manifest = cls(**raw, files=files)
        if not isinstance(manifest.data_interval.get("start"), str):
            raise ValueError(f"{where}: data_interval has no start; the manifest was edited, publish again")
        digest = content_digest(files)
        if manifest.release_id != make_release_id(manifest.day, digest):
            raise ValueError(
                f"{where}: release {manifest.release_id} does not fit its file list (digest {digest[:12]});"
                " the manifest was edited: publish again"
            )
        return manifest


_KINDS: dict[str, type | tuple[type, ...]] = {
    "release_id": str,
    "created_at": str,
    "source": str,
    "data_interval": dict,
    "data": dict,
    "parents": list,
    "code_commit": str,
    "environment": dict,
    "seed": int,
    "summaries": dict,
    "metrics": dict,
    "files": list,
}


def _entry(raw: Any, where: str) -> FileEntry:
    """One file of the list as it came: nothing about it is trusted."""
    if not isinstance(raw, dict) or set(raw) != {"path", "size", "sha256"}:
        raise ValueError(f"{where}: an entry of files has other fields than path, size, sha256; publish again")
    path, size, sha256 = raw["path"], raw["size"], raw["sha256"]
    if not isinstance(path, str) or type(size) is not int or size < 0 or not _SHA256.fullmatch(str(sha256)):
        raise ValueError(f"{where}: the entry of {path!r} has no proper size and sha256; publish again")
    check_key(path)
    return FileEntry(path=path, size=size, sha256=sha256)


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
    another digest (a mixed or damaged set), a file the manifest does not know, a link, a path outside the folder, a
    file that is not what its name says; and for a signature that is missing or not by a trusted key.
    """
    where = f"{folder}/{MANIFEST}"
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is not a release: it has no {MANIFEST}; give a folder that publish wrote") from None
    manifest = Manifest.from_bytes(data, where)
    verify_signature(data, _signature(folder, data), f"release {manifest.release_id}")
    for entry in manifest.files:
        _verify_file(folder, entry, manifest.release_id)
    known = {entry.path for entry in manifest.files} | {MANIFEST}
    found = {os.path.relpath(os.path.join(base, f), folder) for base, _, names in os.walk(folder) for f in names}
    if extra := sorted(path for path in found - known if not _SIGNATURE.fullmatch(path)):
        raise ValueError(f"release {manifest.release_id}: {extra[0]} is not in the manifest; refusing a mixed set")
    if missing := [path for path in REQUIRED if path not in known]:
        raise ValueError(f"release {manifest.release_id}: the manifest lists no {missing[0]}; publish again")
    return manifest


def _signature(folder: Path, manifest: bytes) -> bytes | None:
    path = folder / signature_name(manifest)
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


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
    check_contents(path, name)


def released(store: ObjectStore) -> list[str]:
    """Ids of the releases that are whole, in order: those whose manifest is there."""
    return [name for name in store.children("releases") if store.get(f"releases/{name}/{MANIFEST}") is not None]


def load_release(store: ObjectStore, release_id: str) -> tuple[Path, Manifest]:
    """The folder and the verified manifest of a published release; ValueError when it is unknown or damaged."""
    check_release_id(release_id)
    if store.get(f"releases/{release_id}/{MANIFEST}") is None:
        raise ValueError(f"there is no release {release_id} in this store; see `onerec release list`")
    folder = store.local(f"releases/{release_id}")
    try:
        manifest = verify(folder)
    except ValueError:
        if not store.drop_copy(f"releases/{release_id}"):
            raise
        folder = store.local(f"releases/{release_id}")  # the copy was damaged, or the store is: fetched once more
        manifest = verify(folder)
    if manifest.release_id != release_id:
        raise ValueError(f"folder {release_id} holds release {manifest.release_id}; restore the right folder")
    return folder, manifest
