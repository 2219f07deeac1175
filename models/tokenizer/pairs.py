"""Item pairs that should be close (TR section 2.1): user-to-item and item-to-item.

    pairs = training_pairs(users, items, num_items, PairConfig(), seed=0)   # [P, 2] rows of the catalogue

User-to-item: a user's target positive with that one of the latest 50 positives before it which is collaboratively most
similar. The similarity is the cosine of PPMI-SVD vectors, in place of the retrieval model of the paper's predecessor.
Item-to-item: the nearest by Swing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from sklearn.utils.extmath import randomized_svd

from models.tokenizer.ppmi import ppmi
from models.tokenizer.swing import swing
from models.tokenizer.swing_scores import SwingConfig

COLLABORATIVE_DIM = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """`targets` newest positives a user are paired with one of the `window` before; `neighbours` Swing pairs an item.

    Swing's floor of items a user is 2 here instead of the published 10: small logs have few users above it.
    """

    window: int = 50
    targets: int = 4
    neighbours: int = 10
    swing: SwingConfig = dataclasses.field(default_factory=lambda: SwingConfig(min_items=2))

    def __post_init__(self) -> None:
        if self.window < 1 or self.targets < 0 or self.neighbours < 0 or self.targets + self.neighbours == 0:
            raise ValueError(
                f"window {self.window} must be at least 1; targets {self.targets} and neighbours {self.neighbours} "
                "must not be negative, and one of them must be more than 0"
            )


def collaborative_vectors(users: np.ndarray, items: np.ndarray, num_items: int, seed: int) -> np.ndarray:
    """Unit PPMI-SVD vectors [num_items, at most 64]; items without a common user have a zero row."""
    dim = max(1, min(COLLABORATIVE_DIM, num_items - 1))
    association = ppmi(users, items, num_items) if len(users) else None
    if association is None or not association.nnz:
        return np.zeros((num_items, dim), np.float32)
    u, s, _ = randomized_svd(association, dim, random_state=seed)
    vectors = u * np.sqrt(s)
    vectors[np.diff(association.indptr) == 0] = 0  # rounding noise of the SVD is no signal
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def user_to_item(
    users: np.ndarray, items: np.ndarray, vectors_ND: np.ndarray, *, window: int = 50, targets: int = 1
) -> np.ndarray:
    """Pairs [P, 2] (target, most similar of the `window` positives before it) of users' newest `targets` positives.

    users, items: positives in time order (oldest first) within a user; items are rows of vectors_ND. A target is left
    out if nothing before it has a positive similarity (then the choice would be arbitrary), a repeat of itself aside.
    """
    order = np.argsort(users, kind="stable")
    user, item = users[order], items[order]
    start = np.searchsorted(user, user)  # first event of the same user
    end = np.searchsorted(user, user, side="right")
    target = np.flatnonzero((np.arange(len(user)) >= end - targets) & (np.arange(len(user)) > start))
    pairs = []
    for chunk in np.array_split(target, max(1, len(target) // 4096)):
        at = chunk[:, None] - 1 - np.arange(window)[None]  # newest first
        inside = at >= start[chunk][:, None]
        candidate = item[np.where(inside, at, 0)]
        similarity = np.einsum("pd,pwd->pw", vectors_ND[item[chunk]], vectors_ND[candidate])
        similarity[~inside | (candidate == item[chunk][:, None])] = -np.inf
        best = similarity.argmax(1)
        good = similarity[np.arange(len(chunk)), best] > 0
        pairs.append(np.stack([item[chunk], candidate[np.arange(len(chunk)), best]], 1)[good])
    return np.concatenate(pairs).astype(np.int64)


def item_to_item(users: np.ndarray, items: np.ndarray, config: PairConfig) -> np.ndarray:
    """Pairs [P, 2] (item, one of its `config.neighbours` nearest by Swing)."""
    table = pa.table({"user_id": pa.array(users, pa.int64()), "item_id": pa.array(items, pa.int64())})
    found = swing(table, dataclasses.replace(config.swing, neighbours=config.neighbours))
    return np.stack([found["item_id"].to_numpy(), found["neighbour_id"].to_numpy()], 1)


def training_pairs(users: np.ndarray, items: np.ndarray, num_items: int, config: PairConfig, seed: int) -> np.ndarray:
    """Both kinds, [P, 2] int64. items are rows of the catalogue; users' positives are in time order."""
    parts = [np.empty((0, 2), np.int64)]
    if config.targets and len(users):
        vectors = collaborative_vectors(users, items, num_items, seed)
        parts.append(user_to_item(users, items, vectors, window=config.window, targets=config.targets))
    if config.neighbours and len(users):
        parts.append(item_to_item(np.unique(users, return_inverse=True)[1], items, config))
    return np.concatenate(parts)
