"""The object store on S3, through boto3: multipart, retries, checksums, conditional writes.

    store = S3Store(S3Config(bucket="onerec", prefix="prod/kuairand"), cache=Path("var/store-cache"))

Credentials, region and endpoint come from where boto3 finds them (AWS_*, AWS_ENDPOINT_URL_S3, a role). At start a probe
asks whether the server keeps conditional writes (`If-None-Match`, `If-Match`). Where it answers 501, or takes them and
ignores them, whatever has to be decided between two writers is refused unless a lock service is given.
A tree becomes visible by its last object (the manifest), written create-only when all others are there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

SMALL = 64 << 20  # bytes; pointers, manifests and decisions are far below, and nothing larger is read into memory
_REFUSED, _UNKNOWN = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}, {"501", "NotImplemented"}
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_MEND = {
    "403": "the credentials may not do this: check the role's rights for this prefix, and the clock",
    "ExpiredToken": "the credentials have expired: renew them and run the same command again",
    "NoSuchBucket": "create the bucket, or mend the address of the store",
    "SlowDown": "the server asks for fewer requests: wait and run the same command again",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Config:
    """Where the store is, and how patient the client. Times in seconds; `part_bytes`: size of one part of an upload."""

    bucket: str
    prefix: str = ""
    attempts: int = 5
    timeout_s: float = 30.0
    part_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.prefix:
            check_key(self.prefix)
        if not self.bucket or self.attempts < 1 or self.timeout_s <= 0 or self.part_bytes < 5 << 20:
            raise ValueError(f"{self}: needs a bucket, attempts and timeout_s above 0, parts of 5 MiB or more")


class S3Store:
    """An `ObjectStore` on S3. `cache` holds verified copies of trees, `lock` stands in for conditional writes."""

    def __init__(self, config: S3Config, *, cache: Path, lock: PostgresLock | None = None) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.config, self.cache, self.lock = config, Path(cache), lock
        patience = Config(
            retries={"mode": "standard", "total_max_attempts": config.attempts},
            connect_timeout=config.timeout_s,
            read_timeout=config.timeout_s,
            s3={"addressing_style": "path"},
        )
        self._s3 = boto3.session.Session().client("s3", config=patience)  # boto3.client would keep old credentials
        self._transfer = TransferConfig(
            multipart_threshold=config.part_bytes, multipart_chunksize=config.part_bytes, max_concurrency=4
        )
        self.conditional, self.why = self._probe()

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, replacing what was there; readers see the old or the new bytes."""
        self._upload(key, path, digest_file(path)[1])

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, None when there is none."""
        found = self._read(key)
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
            with self.lock.held(f"{self.config.bucket}/{self._at(key)}") as still_held:
                self._expected(key, expect)
                still_held()  # a holder that was cut off while it read must not write
                self._put(key, data)
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
            if not self._has(f"{prefix}/{name}", path, sha256):
                self._upload(f"{prefix}/{name}", path, sha256)
        try:
            self.create_only_put(f"{prefix}/{last[0]}", last[1])
        except ConflictError:
            return False
        return True

    def children(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted, also of trees whose last object is missing."""
        base = f"{self._at(prefix)}/"
        names: set[str] = set()
        for page in self._pages(base, Delimiter="/"):
            names |= {p["Prefix"][len(base) :].rstrip("/") for p in page.get("CommonPrefixes", [])}
            names |= {o["Key"][len(base) :] for o in page.get("Contents", [])}
        return sorted(name for name in names if name and not name.startswith("."))

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """Every object below a prefix, by key relative to it. StoreError for a key that is no safe path."""
        base = f"{self._at(prefix)}/"
        found = []
        for page in self._pages(base):
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
                    path = stage / o.key
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with self._errors("download", f"{prefix}/{o.key}"):
                        self._s3.download_file(
                            self.config.bucket, self._at(f"{prefix}/{o.key}"), str(path), Config=self._transfer
                        )
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
            with self._errors("delete", f"{prefix}/{key}"):
                self._s3.delete_object(Bucket=self.config.bucket, Key=self._at(f"{prefix}/{key}"))
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
            self._put(key, data, writer=writer, **condition)
        except ConflictError:
            # A retry of a put whose answer was lost meets its own object: then we have won, not lost.
            if (now := self._read(key)) is None or now[2] != writer:
                raise

    def _expected(self, key: str, expect: str | None) -> str | None:
        """The entity tag of the object as expected; ConflictError when it is another."""
        found = self._read(key)
        digest = None if found is None else digest_bytes(found[0])
        if digest != expect:
            raise not_expected(key, expect, digest)
        return None if found is None else found[1]

    def _read(self, key: str) -> tuple[bytes, str, str] | None:
        """Bytes, entity tag and writer of a small object."""
        with self._errors("read", key):
            try:
                found = self._s3.get_object(Bucket=self.config.bucket, Key=self._at(key))
            except self._s3.exceptions.ClientError as error:
                if _code(error) & _ABSENT and "NoSuchBucket" not in _code(error):
                    return None
                raise
            if found["ContentLength"] > SMALL:
                raise StoreError(f"{key} has {found['ContentLength']:,} bytes, a small object has at most {SMALL:,}")
            return found["Body"].read(), found["ETag"], found["Metadata"].get("writer", "")

    def _put(self, key: str, data: bytes, *, writer: str = "", **condition: str) -> None:
        with self._errors("write", key):
            self._s3.put_object(
                Bucket=self.config.bucket, Key=self._at(key), Body=data, Metadata={"writer": writer}, **condition
            )

    def _has(self, key: str, path: Path, sha256: str) -> bool:
        with self._errors("look at", key):
            try:
                found = self._s3.head_object(Bucket=self.config.bucket, Key=self._at(key))
            except self._s3.exceptions.ClientError as error:
                if _code(error) & _ABSENT:
                    return False
                raise
        return found["ContentLength"] == path.stat().st_size and found["Metadata"].get("sha256") == sha256

    def _upload(self, key: str, path: Path, sha256: str) -> None:
        """In parts, each with a checksum that the server verifies; whole or invisible. What was sent is hashed."""
        with open(path, "rb") as file, self._errors("upload", key):
            reader = _Hashing(file)
            extra = {"Metadata": {"sha256": sha256}}
            self._s3.upload_fileobj(reader, self.config.bucket, self._at(key), ExtraArgs=extra, Config=self._transfer)
        if (got := reader.digest.hexdigest()) != sha256:
            self._s3.delete_object(Bucket=self.config.bucket, Key=self._at(key))
            raise ValueError(f"{key} changed during publish: expected {sha256}, got {got}; publish again")

    def _pages(self, base: str, **options: str) -> Iterator[dict[str, Any]]:
        with self._errors("list", base):
            pages = self._s3.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.config.bucket, Prefix=base, **options)

    def _probe(self) -> tuple[bool, str]:
        """Does the server keep conditional writes? And if not, what it did instead."""
        key = f"probe/{uuid.uuid4().hex}"
        tries: tuple[tuple[dict[str, str], bool], ...] = (
            ({"IfNoneMatch": "*"}, True),
            ({"IfNoneMatch": "*"}, False),
            ({"IfMatch": '"00000000000000000000000000000000"'}, False),
        )
        try:
            for condition, expected in tries:
                header = "If-None-Match" if "IfNoneMatch" in condition else "If-Match"
                try:
                    self._put(key, b"", **condition)
                    written = True
                except ConflictError:
                    written = False
                except StoreError as error:
                    code = _code(error.__cause__) if isinstance(error.__cause__, Exception) else set()
                    if code & _UNKNOWN:
                        return False, f"the store does no conditional writes (501 for {header})"
                    if "AccessDenied" in code:
                        return False, "these credentials may only read"
                    raise
                if written != expected:
                    return False, f"the store takes {header} and does not keep it"
            return True, ""
        finally:
            with contextlib.suppress(Exception):
                self._s3.delete_object(Bucket=self.config.bucket, Key=self._at(key))

    def _at(self, key: str) -> str:
        return f"{self.config.prefix}/{check_key(key)}" if self.config.prefix else check_key(key)

    @contextlib.contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        """Turn what boto3 raises into ConflictError or a StoreError that names object, cause and mend."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code & _REFUSED:
                raise ConflictError(f"{key} changed meanwhile; read it again and repeat") from error
            mend = next((_MEND[c] for c in sorted(code, reverse=True) if c in _MEND), "run the same command again")
            raise StoreError(f"cannot {doing} {key} in bucket {self.config.bucket}: {error}; {mend}") from error
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise StoreError(
                f"cannot {doing} {key} in bucket {self.config.bucket}: {error};"
                " check endpoint and network, then run the same command again"
            ) from error


class _Hashing:
    """A reader that boto3 must read in order, which hashes what it gives away."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _code(error: Exception) -> set[str]:
    response = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return {str(status), str(response.get("Error", {}).get("Code", ""))}
