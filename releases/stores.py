"""Which object store: a directory by default, S3 where ONEREC_STORE says so.

    store = open_store(Path("var/kuairand/store"), source="kuairand")

| variable | meaning |
|---|---|
| `ONEREC_STORE` | `s3://bucket/prefix`; every source has its own folder below. Unset: the directory |
| `ONEREC_LOCK` | `postgresql://...`: the lock service for a store without conditional writes |
| `AWS_*`, `AWS_ENDPOINT_URL_S3` | credentials, region and server, as boto3 reads them |
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from releases.object_store import DirectoryStore, ObjectStore


def open_store(directory: Path, *, source: str) -> ObjectStore:
    """The store of a source. On S3, `directory` keeps copies of what was downloaded.

    Raises ValueError for an address that is none, StoreError when the server refuses the credentials or is not there.
    """
    address = os.environ.get("ONEREC_STORE", "")
    if not address:
        return DirectoryStore(directory)
    from releases.bucket import S3Config
    from releases.lock_service import PostgresLock
    from releases.s3 import S3Store

    parts = urlsplit(address)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"ONEREC_STORE is {address!r}; write s3://bucket/prefix, or unset it for a directory")
    prefix = "/".join(part for part in (parts.path.strip("/"), source) if part)
    lock = os.environ.get("ONEREC_LOCK", "")
    config = S3Config(bucket=parts.netloc, prefix=prefix)
    return S3Store(config, cache=directory / "copies", lock=PostgresLock(lock) if lock else None)
