"""The floors every model must beat: most popular items by positives, of all time and of the last three days."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from models.onerec.features import POSITIVE_MASK


def popularity(training_sets: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Item ids by number of positive impressions, most popular first, and their counts. Ties go to the smaller id."""
    found = [np.empty(0, np.int64)]
    for path in training_sets:
        t = pq.read_table(path, columns=["item_id", "label"])
        positive = (t["label"].combine_chunks().flatten().to_numpy() & POSITIVE_MASK) > 0
        found.append(t["item_id"].combine_chunks().flatten().to_numpy()[positive])
    ids, counts = np.unique(np.concatenate(found), return_counts=True)
    order = np.lexsort((ids, -counts))
    return ids[order], counts[order]


def rank_popular(popular: np.ndarray, seen: list[np.ndarray], k: int) -> np.ndarray:
    """The first k popular items each user has not seen [U, k], -1 where there are fewer."""
    out = np.full((len(seen), k), -1, np.int64)
    for i, items in enumerate(seen):
        unseen = popular[: k + len(items)]
        unseen = unseen[~np.isin(unseen, items)][:k]
        out[i, : len(unseen)] = unseen
    return out
