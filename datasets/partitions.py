"""Partitions of the lake: folders of Parquet files with a manifest, written whole or not at all.

A partition is `<table>/dt=YYYY-MM-DD/{part-0.parquet, _manifest.json}` (a table without days has no `dt=` level). It is
written to a hidden folder beside its place, flushed to disk and renamed into place; an existing one is exchanged for
the new one in a single system call. So a reader sees the old partition or the new one, and a process killed at any
point leaves a hidden folder that the next write of that partition clears away.

The same rows give the same bytes and the same digest: no clock and no path is written, and the caller sorts the rows.
Write order inside a table is the caller's. Show a manifest: python -m json.tool <partition>/_manifest.json
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.errors import DataError

MANIFEST = "_manifest.json"
PART = "part-0.parquet"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def partition_path(table: Path, day: date) -> Path:
    """The folder of a day's partition of a table's folder."""
    return table / f"dt={day.isoformat()}"


def partition_days(table: Path) -> list[date]:
    """The days a table's folder has whole partitions of, in order."""
    found = table.glob(f"dt=*/{MANIFEST}")
    return sorted(date.fromisoformat(path.parent.name.removeprefix("dt=")) for path in found)


def write_partition(
    path: Path,
    table: pa.Table | Iterable[pa.Table],
    *,
    counts: Mapping[str, int] | None = None,
    extra_files: Mapping[str, pa.Table | Iterable[pa.Table]] | None = None,
    group_rows: int = 1 << 17,
    **fields: Any,
) -> dict[str, Any]:
    """Write `table` as the partition at `path`, replacing the one that is there, and return its manifest.

    A table too large for memory may come in pieces of one schema, one at least, asked for as they are written.
    counts: what the writer counted, looked at when the last piece is written. extra_files: further Parquet files of the
    partition, by name (quarantined rows). group_rows: of a row group. fields: further JSON-able manifest entries; they
    and the counts are not part of the digest, the files are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    staged = path.parent / f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    staged.mkdir()
    try:
        files = []
        for name, content in {PART: table, **(extra_files or {})}.items():
            file = staged / name
            rows = _write_parquet([content] if isinstance(content, pa.Table) else content, file, group_rows)
            _flush(file)
            files.append({"path": name, "rows": rows, "size": file.stat().st_size, "sha256": sha256(file)})
        digest = hashlib.sha256("".join(f"{f['path']} {f['sha256']}\n" for f in files).encode()).hexdigest()
        manifest = {"rows": files[0]["rows"], "digest": digest, "files": files, "counts": dict(counts or {}), **fields}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _flush(staged / MANIFEST)
        _flush(staged)
        replace_folder(staged, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest


def _write_parquet(pieces: Iterable[pa.Table], file: Path, group_rows: int) -> int:
    """Write the pieces one behind the other; return how many rows they have. Row groups do not depend on the pieces."""
    rows, held, writer = 0, None, None
    try:
        for piece in pieces:
            writer = writer or pq.ParquetWriter(file, piece.schema, compression="zstd", store_schema=True)
            held = piece if held is None else pa.concat_tables([held, piece])
            rows += piece.num_rows
            if (whole := len(held) // group_rows * group_rows) > 0:
                writer.write_table(held.slice(0, whole), row_group_size=group_rows)
                held = held.slice(whole)
        assert writer is not None and held is not None, f"{file}: no piece, so no schema"
        if len(held) or not rows:
            writer.write_table(held, row_group_size=group_rows)
    finally:
        if writer is not None:
            writer.close()
    return rows


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the partition at `path`. Raises DataError if there is no whole partition."""
    file = path / MANIFEST
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"no partition {path.parent.name}/{path.name} ({file} is missing): run the ingest of that day"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is not JSON ({error}): delete {path} and run the ingest of that day again") from None


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_folder(staged: Path, path: Path) -> None:
    """Rename `staged` to `path`; an old folder there ends up under the staged name, or is deleted."""
    if not path.exists():
        staged.rename(path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, os.fsencode(staged), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE)
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(path))
    # A file system that cannot exchange: between the two renames the partition is absent, never half.
    old = staged.with_name(staged.name.replace(".tmp-", ".old-"))
    path.rename(old)
    staged.rename(path)
    shutil.rmtree(old)


def _clear_leftovers(path: Path) -> None:
    """Delete what a killed write of this partition left; the hidden folder of a living process is left alone."""
    for kind in ("tmp", "old"):
        for leftover in path.parent.glob(f".{path.name}.{kind}-*"):
            if not alive(int(leftover.name.rsplit("-", 2)[1])):
                shutil.rmtree(leftover, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
