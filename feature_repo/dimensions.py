"""The small tables beside the events: what is known of items, and the static codes of users.

    items, vector_ID = items(lake / "items" / "dt=2022-05-05")
    static = static_codes(lake / "users" / "dt=2022-05-05")

They are made with Arrow, not in an engine, so that DuckDB and Spark see the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.partitions import PART
from feature_repo.content import content_vectors

STATIC_BUCKETS = 8192


def items(partition: Path) -> tuple[pa.Table, np.ndarray]:
    """(item_id, item_row, author_id, duration_ms and the first tag, sorted; content vectors by item_row)."""
    table = pq.read_table(partition / PART).sort_by("item_id")
    text = [" ".join(filter(None, row)) for row in zip(*(table[c].to_pylist() for c in ("caption", "asr", "ocr")))]
    tags, authors = table["tags"].to_pylist(), table["author_id"].to_pylist()
    facts = {
        "item_id": table["item_id"],
        "item_row": pa.array(np.arange(len(table))),
        "author_id": table["author_id"],
        "duration_ms": pc.fill_null(table["duration_ms"], -1),
        "tag": pa.array([t[0] if t and t[0] is not None else -1 for t in tags], pa.int64()),
    }
    return pa.table(facts), content_vectors(tags, authors, text, table["content_embedding"].to_pylist())


def static_codes(partition: Path) -> pa.Table:
    """user_id and static_codes, sorted: each value hashed with its column's number; missing has a code of its own."""
    table = pq.read_table(partition / PART).sort_by("user_id")
    names = [name for name in table.column_names if name != "user_id"]
    codes = np.zeros((len(table), max(1, len(names))), np.int64)
    for i, name in enumerate(names):
        values = pc.fill_null(table[name].cast(pa.string()), "\0missing").combine_chunks().dictionary_encode()
        hashed = np.array([_code(f"{i}={value}") for value in values.dictionary.to_pylist()], np.int64)
        codes[:, i] = hashed[values.indices.to_numpy()]
    offsets = pa.array(np.arange(len(table) + 1) * codes.shape[1], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(codes.ravel()))
    return pa.table({"user_id": table["user_id"], "static_codes": lists})


def _code(text: str) -> int:
    """The lower half of the MD5 sum as a number, in buckets."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "little") % STATIC_BUCKETS
