"""From the feature service's raw arrays to the integers the model embeds. Training and serving both call this file.

An event is seven integers in the order of `EVENT_FIELDS`; a pathway is an [n, 7] array, oldest first.
Item ids become catalogue indices (position in the SID table); an item the table does not know becomes `len(catalogue)`.
Padding is by length and mask, never by a special id: id 0 is an ordinary item.
"""

from __future__ import annotations

import numpy as np

EVENT_FIELDS = ("item_id", "author_id", "tag", "time_s", "play_ms", "duration_ms", "label")
NUM_FIELDS = len(EVENT_FIELDS)
LABELS = ("click", "long_view", "like", "follow", "comment", "forward", "hate", "profile_enter")
POSITIVE_MASK = 0b101110  # long_view, like, follow, forward

GAP_BUCKETS = 32  # 0 = clock unknown, else 1 + floor(log2(seconds))
PLAY_BUCKETS = 16  # 0 = unknown, else by the share of the duration that was watched
DURATION_BUCKETS = 24  # 0 = unknown, else 1 + floor(log2(seconds))
LABEL_STATES = 1 << len(LABELS)
_PLAY_EDGES = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95, 1.05, 1.5, 2.5, 5.0])
_HASH = np.uint64(0x9E3779B97F4A7C15)


def hash_bucket(values: np.ndarray, buckets: int) -> np.ndarray:
    """Spread int64 ids over 1..buckets-1 by a fixed multiplicative hash; -1 (unknown) is bucket 0."""
    mixed = (values.astype(np.int64).view(np.uint64) * _HASH) >> np.uint64(33)
    return np.where(values < 0, 0, 1 + (mixed % np.uint64(buckets - 1)).astype(np.int64))


def log2_bucket(values: np.ndarray, buckets: int) -> np.ndarray:
    """1 + floor(log2(max(value, 1))), capped; negative (unknown) is bucket 0."""
    level = 1 + np.floor(np.log2(np.maximum(values, 1))).astype(np.int64)
    return np.where(values < 0, 0, np.minimum(level, buckets - 1))


def encode_events(
    events_N7: np.ndarray, now_s_N: np.ndarray, catalogue: Catalogue, author_buckets: int, tag_buckets: int
) -> np.ndarray:
    """Raw events [n, 7] to model integers [n, 7]: item index, author, tag, gap, play share, duration, label."""
    item, author, tag, time_s, play, duration, label = events_N7.T
    gap = np.where(time_s > 0, np.maximum(now_s_N - time_s, 0), -1)
    share = np.where((play >= 0) & (duration > 0), play / np.maximum(duration, 1), -1.0)
    play_bucket = np.where(share < 0, 0, np.searchsorted(_PLAY_EDGES, share, side="right"))
    return np.stack(
        [
            catalogue.index(item),
            hash_bucket(author, author_buckets),
            hash_bucket(tag, tag_buckets),
            log2_bucket(gap, GAP_BUCKETS),
            np.minimum(play_bucket, PLAY_BUCKETS - 1),
            log2_bucket(np.where(duration > 0, duration // 1000, -1), DURATION_BUCKETS),
            label & (LABEL_STATES - 1),
        ],
        axis=1,
    )


class Catalogue:
    """Item ids in the order of the SID table, with a vectorised id -> index map.

    Raises ValueError when an id occurs twice: one item has one semantic ID.
    """

    def __init__(self, item_ids: np.ndarray) -> None:
        self.item_ids = np.ascontiguousarray(item_ids, dtype=np.int64)
        self._order = np.argsort(self.item_ids, kind="stable")
        self._sorted = self.item_ids[self._order]
        if len(self._sorted) > 1 and (repeated := self._sorted[1:][np.diff(self._sorted) == 0]).size:
            raise ValueError(f"item {repeated[0]} stands twice in the SID table; rebuild the tokenizer of this day")

    def __len__(self) -> int:
        return len(self.item_ids)

    def index(self, item_ids: np.ndarray) -> np.ndarray:
        """Catalogue index of each id, `len(self)` where the id is unknown."""
        if not len(self):
            return np.zeros(len(item_ids), np.int64)
        at = np.minimum(np.searchsorted(self._sorted, item_ids), len(self) - 1)
        return np.where(self._sorted[at] == item_ids, self._order[at], len(self))
