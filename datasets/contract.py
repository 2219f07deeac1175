"""The data contract: the tables every source is brought into, as pyarrow schemas, and the label masks as SQL.

Sources differ; everything after `datasets.ingest` reads only these tables. A signal that a source lacks is null:
nothing invents it. An id of 0 is an ordinary id. Times are UTC; the day (`dt`) of a partition is the source's own log
day.

The SQL fragments use CASE and + only, so that DuckDB and Spark read them alike.
Print the tables: python -c "from datasets import contract; print(contract.IMPRESSIONS)"
"""

from __future__ import annotations

import pyarrow as pa

LABELS = (
    "is_click",
    "is_long_view",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "is_profile_enter",
)
"""The feedback signals. Bit i of a `label` mask is LABELS[i]; bit i of `label_known` says whether it was observed."""

POSITIVE_LABELS = ("is_long_view", "is_like", "is_follow", "is_forward")
"""An impression with any of these is a positive: what the model learns to generate and is evaluated on."""

POSITIVE_MASK = sum(1 << LABELS.index(name) for name in POSITIVE_LABELS)

EVENT_FIELDS = ("item_id", "author_id", "tag", "time_s", "play_ms", "duration_ms", "label")
"""The fields of one event of a user pathway, in column order."""

_LABEL_FIELDS = [pa.field(name, pa.int8()) for name in LABELS]

IMPRESSIONS = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("event_time", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("play_time_ms", pa.int64()),
        pa.field("duration_ms", pa.int64()),
        *_LABEL_FIELDS,
        pa.field("surface", pa.string()),
    ]
)

HISTORY = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("pos", pa.int32(), nullable=False),
        *_LABEL_FIELDS,
    ]
)
"""Interactions older than the first log day, of which only the order (`pos`, oldest first) is known. Bootstrap only."""

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("author_id", pa.int64(), nullable=False),  # -1: unknown
        pa.field("upload_time", pa.timestamp("ms", tz="UTC")),
        pa.field("duration_ms", pa.int64()),
        pa.field("tags", pa.list_(pa.int32())),
        pa.field("caption", pa.string()),
        pa.field("asr", pa.string()),
        pa.field("ocr", pa.string()),
        pa.field("cover_uri", pa.string()),
        pa.field("frame_uris", pa.list_(pa.string())),
        pa.field("content_embedding", pa.list_(pa.float32())),
    ]
)

USERS = pa.schema([pa.field("user_id", pa.int64(), nullable=False)])
"""The least a users table holds. Each further column is a static category: a string or an int, null = missing."""


def positive(prefix: str = "") -> str:
    """SQL condition: the impression is a positive. Never null, so that it can be negated."""
    return "(" + " OR ".join(f"COALESCE({prefix}{name}, 0) = 1" for name in POSITIVE_LABELS) + ")"


def identifier(name: str) -> str:
    """The name of a column as SQL, whatever a source wrote into it."""
    return '"' + name.replace('"', '""') + '"'
