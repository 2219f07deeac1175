"""The suite of the items known at the end of a day: the catalogue that may be recommended, and its embeddings.

suite(before=None) -> the rules over `tables.Tables.query("items", day)`
"""

from __future__ import annotations

from data_quality import CRITICAL, WARNING
from data_quality.rules import Rule, never, unique, within

DESCRIBED = 0.9
AUTHORED = 0.95
KEPT = 0.9  # of the items, and of the share of embeddings, of the snapshot before
ZERO = 0.01  # of the embeddings may have no direction

_DESCRIBED = "CASE WHEN len(tags) > 0 OR coalesce(caption, asr, ocr) IS NOT NULL OR e IS NOT NULL THEN 1.0 ELSE 0.0 END"


def suite(before: tuple[int, float] | None) -> list[Rule]:
    """before: rows of the snapshot before this one and the share of them with an embedding, if there is one."""
    found = [
        within(None, "count(*)", "there are items", CRITICAL, low=1),
        never("item_id", "item_id IS NULL", "item_id is never missing", CRITICAL),
        unique(("item_id",), "an item stands there once", CRITICAL),
        never("item_id", "item_id < 0", "item_id is not negative", CRITICAL),
        never("author_id", "author_id IS NULL", "author_id is never missing", CRITICAL),
        never("author_id", "author_id < -1", "author_id is an id, or -1 for unknown", CRITICAL),
        never("duration_ms", "duration_ms < 1", "a known duration is positive", CRITICAL),
        within(
            "author_id",
            "count(*) FILTER (author_id >= 0) / count(*)",
            "most items have a known author",
            WARNING,
            low=AUTHORED,
        ),
        within(None, f"avg({_DESCRIBED})", "most items have a tag, a text or an embedding", WARNING, low=DESCRIBED),
        never("upload_time", "upload_ms > end_ms", "no item is uploaded after the day", WARNING),
        *_embeddings(),
    ]
    if before is not None:
        rows, embedded = before
        found.append(within(None, "count(*)", "the catalogue has not shrunk", WARNING, low=int(rows * KEPT)))
        if embedded:
            found.append(
                within(
                    "content_embedding",
                    "count(e) / count(*)",
                    "embeddings have not gone missing",
                    WARNING,
                    low=round(embedded * KEPT, 6),
                )
            )
    return found


def _embeddings() -> list[Rule]:
    """Of the vectors that are there: a catalogue without any passes."""
    column = "content_embedding"
    broken = "e IS NOT NULL AND len(e) > 0 AND (norm IS NULL OR NOT isfinite(norm))"
    return [
        never(column, "len(e) <> width OR len(e) = 0", "every embedding has the same width", CRITICAL),
        never(column, broken, "no embedding holds a NaN, an infinity or a null", CRITICAL),
        within(
            column,
            "CASE WHEN count(e) > 1 AND min(hash(e)) = max(hash(e)) THEN 1 ELSE 0 END",
            "the embeddings are not all one vector",
            CRITICAL,
            high=0,
        ),
        within(
            column,
            "coalesce(count(*) FILTER (norm = 0) / nullif(count(e), 0), 0)",
            "hardly any embedding is zero",
            WARNING,
            high=ZERO,
        ),
    ]
