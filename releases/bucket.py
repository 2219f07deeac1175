"""A prefix of an S3 bucket through boto3: multipart, retries, checksums, and errors that name object, cause and mend.

    bucket = Bucket(S3Config(bucket="onerec", prefix="prod/kuairand"))
    bucket.write("channels/production.json", data, IfNoneMatch="*")
    bucket.upload("releases/4f/model.safetensors", path, sha256)

Credentials, region and endpoint come from where boto3 finds them (AWS_*, AWS_ENDPOINT_URL_S3, a role). Keys are
relative to the prefix. What boto3 raises becomes a StoreError, a condition that was not met a ConflictError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from releases.object_store import ConflictError, StoreError, check_key

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


class Bucket:
    """Reads and writes objects; what they mean to a release is not its business."""

    def __init__(self, config: S3Config) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.config = config
        patience = Config(
            retries={"mode": "standard", "total_max_attempts": config.attempts},
            connect_timeout=config.timeout_s,
            read_timeout=config.timeout_s,
            s3={"addressing_style": "path"},
        )
        self.client = boto3.session.Session().client("s3", config=patience)  # boto3.client would keep old credentials
        self.transfer = TransferConfig(
            multipart_threshold=config.part_bytes, multipart_chunksize=config.part_bytes, max_concurrency=4
        )

    def read(self, key: str) -> tuple[bytes, str, str] | None:
        """Bytes, entity tag and writer of a small object; None when there is none."""
        with self._errors("read", key):
            try:
                found = self.client.get_object(Bucket=self.config.bucket, Key=self.at(key))
            except self.client.exceptions.ClientError as error:
                if _code(error) & _ABSENT and "NoSuchBucket" not in _code(error):
                    return None
                raise
            if found["ContentLength"] > SMALL:
                raise StoreError(f"{key} has {found['ContentLength']:,} bytes, a small object has at most {SMALL:,}")
            return found["Body"].read(), found["ETag"], found["Metadata"].get("writer", "")

    def write(self, key: str, data: bytes, *, writer: str = "", **condition: str) -> None:
        """Put a small object. condition: IfNoneMatch or IfMatch, as boto3 names them; writer: found again by `read`."""
        with self._errors("write", key):
            self.client.put_object(
                Bucket=self.config.bucket, Key=self.at(key), Body=data, Metadata={"writer": writer}, **condition
            )

    def has(self, key: str, path: Path, sha256: str) -> bool:
        """Is the file there already, by its size and the digest it was uploaded with?"""
        with self._errors("look at", key):
            try:
                found = self.client.head_object(Bucket=self.config.bucket, Key=self.at(key))
            except self.client.exceptions.ClientError as error:
                if _code(error) & _ABSENT:
                    return False
                raise
        return found["ContentLength"] == path.stat().st_size and found["Metadata"].get("sha256") == sha256

    def upload(self, key: str, path: Path, sha256: str) -> None:
        """In parts, each with a checksum that the server verifies; whole or invisible. What was sent is hashed."""
        with open(path, "rb") as file, self._errors("upload", key):
            reader = _Hashing(file)
            extra = {"Metadata": {"sha256": sha256}}
            self.client.upload_fileobj(reader, self.config.bucket, self.at(key), ExtraArgs=extra, Config=self.transfer)
        if (got := reader.digest.hexdigest()) != sha256:
            self.client.delete_object(Bucket=self.config.bucket, Key=self.at(key))
            raise ValueError(f"{key} changed during publish: expected {sha256}, got {got}; publish again")

    def download(self, key: str, path: Path) -> None:
        """The object as a file; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors("download", key):
            self.client.download_file(self.config.bucket, self.at(key), str(path), Config=self.transfer)

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self.client.delete_object(Bucket=self.config.bucket, Key=self.at(key))

    def pages(self, base: str, **options: str) -> Iterator[dict[str, Any]]:
        """Pages of a listing, as boto3 gives them; `base` is what `at` made of a prefix, with a slash behind."""
        with self._errors("list", base):
            pages = self.client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.config.bucket, Prefix=base, **options)

    def keeps_conditions(self) -> tuple[bool, str]:
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
                    self.write(key, b"", **condition)
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
                self.client.delete_object(Bucket=self.config.bucket, Key=self.at(key))

    def at(self, key: str) -> str:
        """The object's key in the bucket. Raises ValueError for a key that is no safe path."""
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
