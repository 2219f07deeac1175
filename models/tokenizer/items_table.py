"""What the tokenizer reads: ids of the items table with a digest of what they contain, the content of a few of them,
and who liked what in the training sets.

ids, digest = read_digests(path)                    # one scan, nothing kept but 16 bytes an item
rows = read_rows(path, ids[new])                    # only these rows come into memory
content = content_of(rows)
users, liked = read_positives(training_sets, ids)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.onerec.features import POSITIVE_MASK

TEXTS = ("caption", "asr", "ocr")
COLUMNS = ("item_id", "tags", "author_id", *TEXTS, "cover_uri", "frame_uris")


@dataclasses.dataclass(frozen=True)
class Content:
    """What the representation is made of, in ascending order of `ids`. An unknown author is -1, no text is ''."""

    ids: np.ndarray
    tags: list[list[int]]
    authors: np.ndarray
    texts: list[str]


def read_digests(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids in ascending order and a 64-bit digest of each item's author, tags, texts and picture URIs (half an MD5).

    An item whose digest changes is named anew. Raises ValueError on an empty table and on an id that stands twice.
    """
    import duckdb

    names = set(pq.read_schema(path).names)
    parts = ["coalesce(author_id::VARCHAR, '')", "coalesce(array_to_string(tags, ','), '')"]
    parts += [f"coalesce({c}, '')" for c in (*TEXTS, "cover_uri") if c in names]
    parts += ["coalesce(array_to_string(frame_uris, ','), '')"] if "frame_uris" in names else []
    joined = ", ".join(parts)
    query = f"SELECT item_id, md5_number_lower(concat_ws(chr(31), {joined})) AS content FROM read_parquet(?) ORDER BY 1"
    with duckdb.connect() as db:
        table = db.sql(query, params=[str(path)]).to_arrow_table()
    ids, digest = table["item_id"].to_numpy(), table["content"].to_numpy()
    if not len(ids):
        raise ValueError(f"{path} holds no items: the tokenizer has nothing to name; check the ingest of this day")
    if len(twice := ids[1:][ids[1:] == ids[:-1]]):
        raise ValueError(f"{path}: item {twice[0]} stands twice; one item has one semantic ID, check the ingest")
    return ids, digest.astype(np.uint64)


def read_rows(path: Path, ids: np.ndarray | None = None) -> pa.Table:
    """The content columns of these items, or of all, in ascending order of the id."""
    names = pq.read_schema(path).names
    wanted = None if ids is None else pa.compute.field("item_id").isin(pa.array(ids))
    return pq.read_table(path, columns=[c for c in COLUMNS if c in names], filters=wanted).sort_by("item_id")


def content_of(rows: pa.Table) -> Content:
    """What the report shows of items."""
    texts = [rows[c].to_pylist() for c in TEXTS if c in rows.column_names]
    return Content(
        rows["item_id"].to_numpy(),
        [t or [] for t in rows["tags"].to_pylist()],
        rows["author_id"].fill_null(-1).to_numpy(),
        [" ".join(filter(None, parts)) for parts in zip(*texts)] if texts else [""] * len(rows),
    )


def read_positives(training_sets: list[Path], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(user, row of `ids`) of every positive impression in the training sets."""
    users, liked = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for path in training_sets:
        t = pq.read_table(path, columns=["user_id", "item_id", "label"])
        lists = t["item_id"].combine_chunks()
        user = np.repeat(t["user_id"].to_numpy(), lists.value_lengths().to_numpy())
        positive = (t["label"].combine_chunks().flatten().to_numpy() & POSITIVE_MASK) > 0
        users.append(user[positive])
        liked.append(lists.flatten().to_numpy()[positive])
    user, item = np.concatenate(users), np.concatenate(liked)
    row = np.minimum(np.searchsorted(ids, item), len(ids) - 1)
    known = ids[row] == item
    return user[known], row[known]
