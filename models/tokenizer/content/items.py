"""What there is to know of an item's content, read from the items table; missing modalities are empty.

items = read_items(pyarrow.parquet.read_table("items.parquet"))
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pyarrow as pa

TEXT_FIELDS = ("caption", "asr", "ocr")
MAX_TAGS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemContent:
    """One item. `frames` are URIs of pictures in order, or of one clip from which frames are sampled."""

    caption: str = ""
    asr: str = ""
    ocr: str = ""
    tags: tuple[int, ...] = ()
    author: int = -1
    cover: str = ""
    frames: tuple[str, ...] = ()

    @property
    def has_text(self) -> bool:
        return bool(self.caption or self.asr or self.ocr)

    @property
    def has_pictures(self) -> bool:
        return bool(self.cover or self.frames)


def read_items(table: pa.Table) -> list[ItemContent]:
    """Rows of an items table (data contract); columns other than item_id and author_id may be missing or null."""

    def column(name: str) -> list:
        return table[name].to_pylist() if name in table.column_names else [None] * len(table)

    texts = [[(t or "").strip() for t in column(f)] for f in TEXT_FIELDS]
    rows = zip(*texts, column("tags"), column("author_id"), column("cover_uri"), column("frame_uris"))
    return [
        ItemContent(
            caption=caption,
            asr=asr,
            ocr=ocr,
            tags=tuple(tags or ()),
            author=-1 if author is None else author,
            cover=cover or "",
            frames=tuple(f for f in frames or () if f),
        )
        for caption, asr, ocr, tags, author, cover, frames in rows
    ]


def hashed(items: list[ItemContent], tag_buckets: int, author_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of the first MAX_TAGS tags [B, MAX_TAGS] and of the author [B], int64, -1 where there is none.

    Hashed, so that a frozen encoder knows a place for values it has never seen.
    """
    tags = np.full((len(items), MAX_TAGS), -1, np.int64)
    author = np.full(len(items), -1, np.int64)
    for row, item in enumerate(items):
        for i, tag in enumerate(item.tags[:MAX_TAGS]):
            tags[row, i] = zlib.crc32(f"tag|{tag}".encode()) % tag_buckets
        if item.author >= 0:
            author[row] = zlib.crc32(f"author|{item.author}".encode()) % author_buckets
    return tags, author
