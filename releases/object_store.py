"""The object store: immutable trees of files and small mutable objects, on a directory.

    from releases.object_store import DirectoryStore
    store = DirectoryStore(Path("var/simulated/store"))

`ObjectStore` is the interface; `releases/s3.py` is the other implementation and `releases/stores.py` chooses. Keys are
relative POSIX paths. Nothing is visible under its key before it is whole and on disk: write, fsync, rename, fsync of
the folder.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_SEGMENT = re.compile(r"[A-Za-z0-9_=+@-][A-Za-z0-9._=+@-]*")
_CHUNK = 1 << 20


class StoreError(ValueError):
    """The store cannot do what was asked; the message names object, cause and mend."""


class ConflictError(StoreError):
    """Somebody else wrote the object first; read it again and decide anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object below a prefix: key relative to it, size in bytes, time of the last write (UTC)."""

    key: str
    size: int
    modified: dt.datetime


def not_expected(key: str, expect: str | None, found: str | None) -> ConflictError:
    return ConflictError(
        f"{key} changed meanwhile: expected {(expect or 'no object')[:12]},"
        f" found {(found or 'no object')[:12]}; read it again and repeat"
    )


def check_key(key: str) -> str:
    """The key itself when it is a plain relative POSIX path; ValueError for `..`, absolute, hidden or odd names."""
    if not key or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise ValueError(f"{key!r} is not a safe object key: use a relative path of letters, digits and ._=+@- only")
    return key


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file."""
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        return f.tell(), digest


class ObjectStore(Protocol):
    """What releases and channels need of a store."""

    def put_file(self, key: str, path: Path) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def create_only_put(self, key: str, data: bytes) -> None: ...
    def compare_and_swap(self, key: str, data: bytes, expect: str | None) -> str: ...
    def put_tree(self, prefix: str, files: Mapping[str, tuple[Path, str]], last: tuple[str, bytes]) -> bool: ...
    def children(self, prefix: str) -> list[str]: ...
    def objects(self, prefix: str) -> list[ObjectInfo]: ...
    def local(self, prefix: str) -> Path: ...
    def drop_copy(self, prefix: str) -> bool: ...
    def delete_tree(self, prefix: str, last: str) -> None: ...


class DirectoryStore:
    """An `ObjectStore` in a directory of one file system. Safe for many processes of one machine."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._staging, self._locks = self.root / ".staging", self.root / ".locks"

    def put_file(self, key: str, path: Path) -> None:
        """Copy a file to `key`, replacing what was there; readers see the old or the new bytes."""
        target = self._prepare(key)
        staged = self._staging / uuid.uuid4().hex
        _copy(path, staged)
        os.replace(staged, target)
        _sync_dir(target.parent)

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, None when there is none."""
        try:
            return (self.root / check_key(key)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create_only_put(self, key: str, data: bytes) -> None:
        """Write a small object once. Raises ConflictError when the key exists."""
        self.compare_and_swap(key, data, None)

    def compare_and_swap(self, key: str, data: bytes, expect: str | None) -> str:
        """Replace a small object whose sha256 is `expect` (None: there is none). Returns the new sha256.

        Raises ConflictError when the object is no longer the expected one; nothing is written then.
        """
        target = self._prepare(key)
        with self._locked(check_key(key).replace("/", "@")):
            current = self.get(key)
            found = None if current is None else digest_bytes(current)
            if found != expect:
                raise not_expected(key, expect, found)
            staged = self._staging / uuid.uuid4().hex
            _write(staged, data)
            os.replace(staged, target)
            _sync_dir(target.parent)
        return digest_bytes(data)

    def put_tree(self, prefix: str, files: Mapping[str, tuple[Path, str]], last: tuple[str, bytes]) -> bool:
        """Publish files {name: (path, sha256)} and then the object `last` (name, bytes) as one immutable tree.

        The tree appears under `prefix` by one rename when all of it is on disk. Returns False, and writes nothing,
        when the prefix exists. Raises ValueError when a file no longer has its sha256. Leftovers of killed
        publishers are removed here: the lock says that none is alive.
        """
        target = self._prepare(prefix)
        with self._locked("publish"):
            if target.exists():
                return False
            for left in self._staging.glob("tree-*"):
                shutil.rmtree(left)
            stage = self._staging / f"tree-{uuid.uuid4().hex}"
            for name, (path, sha256) in files.items():
                copy = stage / check_key(name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if (got := _copy(path, copy)) != sha256:
                    raise ValueError(f"{name} changed during publish: expected {sha256}, got {got}; publish again")
            _write(stage / check_key(last[0]), last[1])
            for folder in [stage, *(p for p in stage.rglob("*") if p.is_dir())]:
                _sync_dir(folder)
            os.rename(stage, target)
            _sync_dir(target.parent)
        return True

    def children(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted; none when the prefix does not exist."""
        folder = self.root / check_key(prefix)
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    def local(self, prefix: str) -> Path:
        """A local folder that holds the tree (the tree itself here; a remote store downloads it)."""
        return self.root / check_key(prefix)

    def drop_copy(self, prefix: str) -> bool:
        """The tree itself is the only copy: False, there is nothing to fetch again."""
        return False

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """Every object below a prefix, by key relative to it."""
        base = self.root / check_key(prefix)
        files = [Path(folder) / name for folder, _, names in os.walk(base) for name in names]
        return [
            ObjectInfo(
                key=path.relative_to(base).as_posix(),
                size=path.lstat().st_size,
                modified=dt.datetime.fromtimestamp(path.lstat().st_mtime, dt.UTC),
            )
            for path in sorted(files)
        ]

    def delete_tree(self, prefix: str, last: str) -> None:
        """Remove a tree: it vanishes by one rename. `last` is of no meaning here."""
        target = self._prepare(prefix)
        with self._locked("publish"):
            gone = self._staging / f"tree-{uuid.uuid4().hex}"
            if target.is_dir():
                os.rename(target, gone)
                _sync_dir(target.parent)
                shutil.rmtree(gone)

    def _prepare(self, key: str) -> Path:
        target = self.root / check_key(key)
        for folder in (target.parent, self._staging, self._locks):
            folder.mkdir(parents=True, exist_ok=True)
        return target

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # The kernel drops the lock when its holder dies, so a killed process never blocks the next one.
        with open(self._locks / f"{name}.lock", "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _copy(source: Path, target: Path) -> str:
    """Copy, fsync, and return the sha256 of what was written."""
    digest = hashlib.sha256()
    with open(source, "rb") as r, open(target, "wb") as w:
        while chunk := r.read(_CHUNK):
            digest.update(chunk)
            w.write(chunk)
        w.flush()
        os.fsync(w.fileno())
    return digest.hexdigest()


def _sync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
