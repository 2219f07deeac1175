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
HALVING = 0.5
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


def transitions(sequences: Sequences) -> sp.csr_matrix:
    """How often an item follows another within WINDOW places of a training sequence [N, N], a place away for 1/place."""
    rows, N = sequences.training(), sequences.num_items
    flat, user = np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    total = sp.csr_matrix((N, N))
    for distance in range(1, WINDOW + 1):
        same = user[:-distance] == user[distance:]
        pair = flat[:-distance][same], flat[distance:][same]
        total = total + sp.csr_matrix((np.full(len(pair[0]), 1 / distance), pair), shape=(N, N))
    return total.tocsr()


def co_occurrence(sequences: Sequences, part: str) -> dict[str, np.ndarray]:
    """Per-user metrics [U] of the items that most often followed the history's, an event k back counting HALVING^k."""
    history, target = sequences.held_out(part)
    follows, ranked = transitions(sequences), []
    for start in range(0, len(history), CHUNK):
        rows = history[start : start + CHUNK]
        weight = np.concatenate([HALVING ** np.arange(len(h) - 1, -1, -1.0) for h in rows])
        users = np.repeat(np.arange(len(rows)), [len(h) for h in rows])
        seen = sp.csr_matrix((weight, (users, np.concatenate(rows))), shape=(len(rows), sequences.num_items))
        ranked.append(top_sparse((seen @ follows).tocsr(), rows))
    return next_item_metrics(np.concatenate(ranked), target)


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
