"""The floors: most popular item, and item co-occurrence without any training. Seconds on one CPU core.

Legend: U users, N items.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from benchmarks.quality.data import Sequences
from benchmarks.quality.protocol import PLACES
from models.evaluation.metrics import next_item_metrics

WINDOW = 5
CHUNK = 2048


def most_popular(sequences: Sequences, part: str) -> dict[str, np.ndarray]:
    """Per-user metrics [U] of the items with most training events, the user's history left out."""
    count = np.bincount(np.concatenate(sequences.training()), minlength=sequences.num_items)
    order = np.argsort(-count, kind="stable")
    history, target = sequences.held_out(part)
    longest = max(len(h) for h in history)
    head = order[: PLACES + longest]
    ranked = np.stack([head[~np.isin(head, h)][:PLACES] for h in history])
    return next_item_metrics(ranked, target)


def co_counts(rows: list[np.ndarray], num_items: int, window: int = WINDOW, decay: bool = False, both: bool = True):
    """tmp"""
    flat = np.concatenate(rows)
    user = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    total = sp.csr_matrix((num_items, num_items))
    for distance in range(1, window + 1):
        same = user[:-distance] == user[distance:]
        a, b = flat[:-distance][same], flat[distance:][same]
        w = np.full(len(a), 1 / distance if decay else 1.0)
        total = total + sp.csr_matrix((w, (a, b)), shape=(num_items, num_items))
    return (total + total.T if both else total).tocsr()


def top_sparse(score_UN: sp.csr_matrix, history: list[np.ndarray]) -> np.ndarray:
    """The PLACES best items of each row but the history's, -1 where no other has a score; ties: the smaller id."""
    ranked = np.full((len(history), PLACES), -1, np.int64)
    for i, seen in enumerate(history):
        item = score_UN.indices[score_UN.indptr[i] : score_UN.indptr[i + 1]]
        value = score_UN.data[score_UN.indptr[i] : score_UN.indptr[i + 1]]
        keep = ~np.isin(item, seen) & (value > 0)
        item, value = item[keep], value[keep]
        best = np.lexsort((item, -value))[:PLACES]
        ranked[i, : len(best)] = item[best]
    return ranked
