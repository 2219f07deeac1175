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
from feature_repo.content import CONTENT_DIM, content_vectors

STATIC_BUCKETS = 8192
TEXTS = ("caption", "asr", "ocr")
PIECE = 1 << 16  # items that are Python objects at a time


def items(partition: Path) -> tuple[pa.Table, np.ndarray]:
    """(item_id, item_row, author_id, duration_ms and the first tag, sorted; content vectors by item_row)."""
    table = pq.read_table(partition / PART).sort_by("item_id")
    vector_ID, tag_I, low = np.empty((len(table), CONTENT_DIM), np.float32), np.empty(len(table), np.int64), 0
    for piece in table.to_batches(PIECE):  # as Python objects a whole catalogue would take many times its size
        own = {name: piece[name].to_pylist() for name in (*TEXTS, "tags", "author_id", "content_embedding")}
        text = [" ".join(filter(None, row)) for row in zip(*(own[name] for name in TEXTS))]
        here = slice(low, low + len(piece))
        vector_ID[here] = content_vectors(own["tags"], own["author_id"], text, own["content_embedding"])
        tag_I[here] = [t[0] if t and t[0] is not None else -1 for t in own["tags"]]
        low += len(piece)
    facts = {
        "item_id": table["item_id"],
        "item_row": pa.array(np.arange(len(table))),
        "author_id": table["author_id"],
        "duration_ms": pc.fill_null(table["duration_ms"], -1),
        "tag": pa.array(tag_I),
    }
    return pa.table(facts), vector_ID


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
