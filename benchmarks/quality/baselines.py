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
    """How often an item follows another within WINDOW places of a training sequence [N, N]; d places away count 1/d."""
    rows, N = sequences.training(), sequences.num_items
    flat, user = np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    total = sp.csr_matrix((N, N))
    for distance in range(1, WINDOW + 1):
        same = user[:-distance] == user[distance:]
        pair = flat[:-distance][same], flat[distance:][same]
        total = total + sp.csr_matrix((np.full(len(pair[0]), 1 / distance), pair), shape=(N, N))
    return total.tocsr()


def co_occurrence(sequences: Sequences, part: str, *, raw: bool = False) -> dict[str, np.ndarray]:
    """Per-user metrics [U] of the items that most often followed the history's. A tie counts against the target.

    An event's followers are shares (rows sum to one), and an event k places back counts 1 / (1 + k). `raw`: counts
    instead of shares, and HALVING ** k: the stronger of the two on validation.
    """
    history, target = sequences.held_out(part)
    follows, ranks = transitions(sequences), []
    if not raw:
        follows = sp.diags(1 / np.maximum(np.asarray(follows.sum(1)).ravel(), 1e-9)) @ follows
    for start in range(0, len(history), CHUNK):
        rows, wanted = history[start : start + CHUNK], target[start : start + CHUNK]
        back = np.concatenate([np.arange(len(h) - 1, -1, -1.0) for h in rows])
        place = np.repeat(np.arange(len(rows)), [len(h) for h in rows]), np.concatenate(rows)
        shape = (len(rows), sequences.num_items)
        score = sp.csr_matrix((HALVING**back if raw else 1 / (1 + back), place), shape=shape) @ follows
        ranks.append(_rank(score, sp.csr_matrix((np.ones(len(back)), place), shape=shape), wanted))
    return next_item_metrics(_places(np.concatenate(ranks), target), target)


def _rank(score_UN: sp.csr_matrix, seen_UN: sp.csr_matrix, target_U: np.ndarray) -> np.ndarray:
    """How many unseen items score at least as high as the target, itself left out; PLACES where it has no score."""
    score_UN = (score_UN - score_UN.multiply(seen_UN > 0)).tocsr()
    own_U = np.asarray(score_UN[np.arange(len(target_U)), target_U]).ravel()
    row = np.repeat(np.arange(len(target_U)), np.diff(score_UN.indptr))
    ahead = (score_UN.data >= own_U[row] * (1 - 1e-9)) & (score_UN.indices != target_U[row])
    return np.where(own_U > 0, np.bincount(row[ahead], minlength=len(target_U)), PLACES)


def _places(rank_U: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    """Lists [U, PLACES] with nothing but the target at its rank, if it is among them."""
    ranked = np.full((len(rank_U), PLACES), -1, np.int64)
    inside = np.flatnonzero(rank_U < PLACES)
    ranked[inside, rank_U[inside]] = target_U[inside]
    return ranked
