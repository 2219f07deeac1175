"""One row of a feature view as bytes, the way both online stores keep it: self-describing, little-endian, no pickle.

    row = encode(stamp_ms, {"short_item_id": np.array([7, 9]), "short_tag": None})
    stamp_ms, columns = decode(row)

Layout: version (1 byte), time stamp in ms (int64), number of columns (uint16); for each column the length of its name
(uint8), the name, the width of a value in bytes (uint8: 1, 2, 4, 8; 0 says null), the number of values (uint32); then
the values of all columns, end to end. A column is as narrow as its own values allow, and reading it is one `frombuffer`
instead of a varint a value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

VERSION = 1
_HEAD = struct.Struct("<BqH")
_COLUMN = struct.Struct("<BI")
_WIDTHS: dict[int, np.dtype] = {width: np.dtype(f"<i{width}") for width in (1, 2, 4, 8)}


def encode(stamp_ms: int, columns: Mapping[str, np.ndarray | None]) -> bytes:
    """The bytes of a row. `columns`: one-dimensional integer arrays by name, None for null."""
    parts, blocks = [_HEAD.pack(VERSION, stamp_ms, len(columns))], []
    for name, values in columns.items():
        label = name.encode()
        assert len(label) < 256, f"the column name {name} is longer than 255 bytes"
        width = 0 if values is None else _width(values)
        parts += [bytes([len(label)]), label, _COLUMN.pack(width, 0 if values is None else len(values))]
        if values is not None:
            blocks.append(values.astype(_WIDTHS[width]).tobytes())
    return b"".join(parts + blocks)


def decode(row: bytes) -> tuple[int, dict[str, np.ndarray | None]]:
    """The time stamp and the columns (int64 arrays of their own memory) of a row.

    Raises ValueError for bytes of another layout.
    """
    version, stamp_ms, count = _HEAD.unpack_from(row)
    if version != VERSION:
        raise ValueError(
            f"a stored feature row has layout {version}, this code reads {VERSION}: delete the online store and fill it"
            " again with `onerec features materialize`"
        )
    at = _HEAD.size
    described: list[tuple[str, int, int]] = []
    for _ in range(count):
        end = at + 1 + row[at]
        width, length = _COLUMN.unpack_from(row, end)
        described.append((row[at + 1 : end].decode(), width, length))
        at = end + _COLUMN.size
    columns: dict[str, np.ndarray | None] = {}
    for name, width, length in described:
        if not width:
            columns[name] = None
            continue
        columns[name] = np.frombuffer(row, _WIDTHS[width], length, at).astype(np.int64)
        at += width * length
    assert at == len(row), f"a stored feature row has {len(row)} bytes, its head describes {at}"
    return stamp_ms, columns


def _width(values: np.ndarray) -> int:
    """The bytes that every value fits in."""
    if not len(values):
        return 1
    low, high = int(values.min()), int(values.max())
    return next(width for width in _WIDTHS if -(1 << (8 * width - 1)) <= low and high < 1 << (8 * width - 1))
