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
