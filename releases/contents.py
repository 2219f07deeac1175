"""Are the files of a release what their names say, and safe to open? Headers only; no value is read.

    check_contents(folder / "model/model.safetensors", "model/model.safetensors")

A digest says that a file is the one that was published, not that it is harmless: whoever can publish could publish a
file that makes a reader allocate terabytes or write outside its folder. Checked here before any library opens it.
"""

from __future__ import annotations

import json
import math
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEADER = 100 << 20  # bytes of a safetensors header or a Parquet footer
TEXT = 64 << 20  # bytes of a JSON file
EXPANDS = 1000  # times that a compressed file may grow
ROWS_A_BYTE = 100  # rows of a table for each byte of its file: run lengths can claim any number
_ITEM = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def check_contents(path: Path, name: str) -> None:
    """ValueError naming the file and what is wrong with it; also for a kind of file that no release holds."""
    check = _CHECKS.get(path.suffix)
    if check is None:
        raise ValueError(f"{name}: a release holds {', '.join(sorted(_CHECKS))} files only; leave it out")
    try:
        check(path)
    except (ValueError, KeyError, TypeError, RecursionError, struct.error, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} is no harmless {path.suffix} file: {error}; refusing it, publish again") from None


def _safetensors(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(HEADER, size - 8):
            raise ValueError(f"its header claims {length:,} bytes of {size:,}")
        header = _object(file.read(length))
    end = 0
    tensors = [(k, v) for k, v in header.items() if k != "__metadata__"]
    for key, tensor in sorted(tensors, key=lambda kv: kv[1]["data_offsets"]):
        begin, stop = tensor["data_offsets"]
        shape = tensor["shape"]
        if any(type(n) is not int or n < 0 for n in (begin, stop, *shape)):
            raise ValueError(f"tensor {key!r} has odd numbers")
        if begin != end or stop - begin != math.prod(shape) * _ITEM[tensor["dtype"]]:
            raise ValueError(f"tensor {key!r} overlaps another, leaves a gap or does not fit its shape")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end:,} bytes, the file has {size - 8 - length:,}")


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(size - 8, 0))
        length, tail = struct.unpack("<I4s", file.read(8))
    if head != b"PAR1" or tail != b"PAR1" or length > min(HEADER, size - 12):
        raise ValueError(f"its footer of {length:,} bytes does not fit into {size:,}")
    try:
        file_ = pq.ParquetFile(path, thrift_string_size_limit=HEADER, thrift_container_size_limit=1_000_000)
    except pa.ArrowException as error:
        raise ValueError(f"its footer cannot be read ({str(error)[:200]})") from None
    with file_:
        meta = file_.metadata
        grown = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        rows = sum(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
        if rows != meta.num_rows or not 0 <= rows <= ROWS_A_BYTE * size:
            raise ValueError(f"it claims {meta.num_rows:,} rows in {size:,} bytes")
        if not 0 <= grown <= EXPANDS * size:
            raise ValueError(f"{size:,} bytes claim to grow to {grown:,}")


def _archive(path: Path) -> None:
    """A compiled program (.pt2) is a zip archive, and its loader unpacks it."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        inside = member.filename.rstrip("/")
        if "\\" in inside or inside.startswith("/") or any(part in ("..", "", ".") for part in inside.split("/")):
            raise ValueError(f"member {member.filename!r} leaves the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"member {member.filename!r} is a link")
    if (grown := sum(m.file_size for m in members)) > EXPANDS * size:
        raise ValueError(f"{size:,} bytes claim to grow to {grown:,}")


def _text(path: Path) -> None:
    if (size := path.stat().st_size) > TEXT:
        raise ValueError(f"{size:,} bytes of JSON, at most {TEXT:,} are read")
    json.loads(path.read_bytes())


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("its header is no JSON object")
    return value


_CHECKS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".json": _text,
    ".pt2": _archive,
}
