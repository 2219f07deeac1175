"""The object store on S3: trees that become visible at once, and decisions between two writers.

    store = S3Store(S3Config(bucket="onerec", prefix="prod/kuairand"), cache=Path("var/store-cache"))

At start a probe asks whether the server keeps conditional writes (`If-None-Match`, `If-Match`). Where it answers 501,
or takes them and ignores them, whatever has to be decided between two writers is refused unless a lock service is
given. A tree becomes visible by its last object (the manifest), written create-only when all others are there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from releases.bucket import Bucket, S3Config
from releases.lock_service import PostgresLock
from releases.object_store import (
    ConflictError,
    ObjectInfo,
    StoreError,
    check_key,
    digest_bytes,
    digest_file,
    not_expected,
)


class S3Store:
    """An `ObjectStore` on S3. `cache` holds verified copies of trees, `lock` stands in for conditional writes."""

    def __init__(self, config: S3Config, *, cache: Path, lock: PostgresLock | None = None) -> None:
        self.config, self.cache, self.lock, self.bucket = config, Path(cache), lock, Bucket(config)
        self.conditional, self.why = self.bucket.keeps_conditions()

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, replacing what was there; readers see the old or the new bytes."""
        self.bucket.upload(key, path, digest_file(path)[1])

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, None when there is none."""
        found = self.bucket.read(key)
        return None if found is None else found[0]

    def create_only_put(self, key: str, data: bytes) -> None:
        """Write a small object once. Raises ConflictError when the key exists."""
        self.compare_and_swap(key, data, None)

    def compare_and_swap(self, key: str, data: bytes, expect: str | None) -> str:
        """Replace a small object whose sha256 is `expect` (None: there is none). Returns the new sha256.

        Raises ConflictError when the object is not the expected one, StoreError where the store cannot promise that.
        """
        self._can_decide(key)
        if self.conditional:
            self._swap(key, data, expect)
        else:
            assert self.lock is not None
            with self.lock.held(f"{self.config.bucket}/{self.bucket.at(key)}") as still_held:
                self._expected(key, expect)
                still_held()  # a holder that was cut off while it read must not write
                self.bucket.write(key, data)
                still_held()
        return digest_bytes(data)

    def put_tree(self, prefix: str, files: Mapping[str, tuple[Path, str]], last: tuple[str, bytes]) -> bool:
        """Publish files {name: (path, sha256)} and then the object `last` (name, bytes) as one immutable tree.

        Returns False, and changes nothing a reader sees, when `last` exists. Raises ValueError when a file no longer
        has its sha256. Run again after a failure, files that are there whole are not sent again.
        """
        self._can_decide(prefix)
        if self.get(f"{prefix}/{last[0]}") is not None:
            return False
        for name, (path, sha256) in files.items():
            if not self.bucket.has(f"{prefix}/{name}", path, sha256):
                self.bucket.upload(f"{prefix}/{name}", path, sha256)
        try:
            self.create_only_put(f"{prefix}/{last[0]}", last[1])
        except ConflictError:
            return False
        return True

    def children(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted, also of trees whose last object is missing."""
        base = f"{self.bucket.at(prefix)}/"
        names: set[str] = set()
        for page in self.bucket.pages(base, Delimiter="/"):
            names |= {p["Prefix"][len(base) :].rstrip("/") for p in page.get("CommonPrefixes", [])}
            names |= {o["Key"][len(base) :] for o in page.get("Contents", [])}
        return sorted(name for name in names if name and not name.startswith("."))

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """Every object below a prefix, by key relative to it. StoreError for a key that is no safe path."""
        base = f"{self.bucket.at(prefix)}/"
        found = []
        for page in self.bucket.pages(base):
            for o in page.get("Contents", []):
                key = check_key(o["Key"][len(base) :])
                found.append(ObjectInfo(key=key, size=o["Size"], modified=o["LastModified"].astimezone(dt.UTC)))
        return found

    def local(self, prefix: str) -> Path:
        """A local folder that holds the tree: downloaded once, visible by one rename."""
        target = self.cache / check_key(prefix)
        if not target.is_dir():
            stage = self.cache / ".staging" / uuid.uuid4().hex
            try:
                for o in self.objects(prefix):
                    self.bucket.download(f"{prefix}/{o.key}", stage / o.key)
                stage.mkdir(parents=True, exist_ok=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError, OSError):  # another process was faster
                    os.rename(stage, target)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        return target

    def drop_copy(self, prefix: str) -> bool:
        """Forget the local copy of a tree, so that `local` fetches it again. True: there may be a better one."""
        shutil.rmtree(self.cache / check_key(prefix), ignore_errors=True)
        return True

    def delete_tree(self, prefix: str, last: str) -> None:
        """Remove a tree; `last` goes first, so that nobody sees a tree with files missing."""
        keys = [o.key for o in self.objects(prefix)]
        for key in sorted(keys, key=lambda k: k != last):
            self.bucket.delete(f"{prefix}/{key}")
        self.drop_copy(prefix)

    def _can_decide(self, key: str) -> None:
        if not self.conditional and self.lock is None:
            raise StoreError(
                f"{key}: {self.why}, so two writers could overwrite each other in bucket {self.config.bucket};"
                " set ONEREC_LOCK=postgresql://... (an advisory lock), or use a store with conditional writes"
            )

    def _swap(self, key: str, data: bytes, expect: str | None) -> None:
        etag = self._expected(key, expect)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        writer = uuid.uuid4().hex
        try:
            self.bucket.write(key, data, writer=writer, **condition)
        except ConflictError:
            # A retry of a put whose answer was lost meets its own object: then we have won, not lost.
            if (now := self.bucket.read(key)) is None or now[2] != writer:
                raise

    def _expected(self, key: str, expect: str | None) -> str | None:
        """The entity tag of the object as expected; ConflictError when it is another."""
        found = self.bucket.read(key)
        digest = None if found is None else digest_bytes(found[0])
        if digest != expect:
            raise not_expected(key, expect, digest)
        return None if found is None else found[1]
