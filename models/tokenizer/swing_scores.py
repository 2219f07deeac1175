"""What Swing counts and how (arXiv 2010.05525): the pairs that are kept, and the scores of one item. swing.py runs it.

s(i, j) = sum over u, v in U_i and U_j, u != v, of  w_u w_v / (alpha + |I_u and I_v|),
w_u = 1 / (|I_u| + user_offset) ** user_power

1. `kept_sql` (one SQL text that DuckDB and Spark accept): distinct (user, item) pairs of users with `min_items` to
   `max_items` items; at most `max_users` users an item, chosen by a hash, are its anchors. As in the public
   implementations the cap binds on the anchor's side only, so scores are symmetric only while no item exceeds it.
2. `item_scores` (SciPy): for one item, from the baskets A of its n users, overlaps C = A A', weights
   W = w w' / (alpha + C) without the diagonal, and s(i, .) = column sums of A * (W A). A join over user pairs forms the
   same products as rows; here one item's n x n weights (8 MB at 1,000 users) are all there is at a time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

RESULT = pa.schema([("item_id", pa.int64()), ("neighbour_id", pa.int64()), ("score", pa.float64())])
_PRIME = 2_147_483_647


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwingConfig:
    """The paper's weights (offset 0, power 0.5, alpha 1) and the public implementations' caps."""

    alpha: float = 1.0
    user_offset: float = 0.0
    user_power: float = 0.5
    min_items: int = 10
    max_items: int = 1000
    max_users: int = 1000
    neighbours: int = 100

    def __post_init__(self) -> None:
        if not 2 <= self.min_items <= self.max_items:
            raise ValueError(
                f"users with {self.min_items} to {self.max_items} items: write 2 <= min_items <= max_items"
            )
        if self.max_users < 2 or self.neighbours < 1:
            raise ValueError(
                f"max_users {self.max_users} must be at least 2 and neighbours {self.neighbours} at least 1"
            )
        if self.alpha < 0 or self.user_offset < 0:
            raise ValueError(f"alpha {self.alpha} and user_offset {self.user_offset} must not be negative")


def kept_sql(source: str, config: SwingConfig) -> str:
    """(user_id, item_id, items, anchor) of the pairs that count; `source` is a relation with user_id and item_id.

    The order of an item's users is a linear congruence of both ids: it depends on nothing else, and products stay
    within 64 bits. Ids must not be negative.
    """
    mixed = f"((user_id % {_PRIME}) * 1103515245 + (item_id % {_PRIME}) * 1664525) % {_PRIME}"
    return f"""
WITH pairs AS (SELECT DISTINCT CAST(user_id AS BIGINT) AS user_id, CAST(item_id AS BIGINT) AS item_id FROM {source}),
sized AS (SELECT user_id, item_id, COUNT(*) OVER (PARTITION BY user_id) AS items FROM pairs),
kept AS (SELECT * FROM sized WHERE items BETWEEN {config.min_items} AND {config.max_items})
SELECT user_id, item_id, items,
    ROW_NUMBER() OVER (PARTITION BY item_id ORDER BY {mixed}, user_id) <= {config.max_users} AS anchor
FROM kept"""


def weights(basket_size: np.ndarray, config: SwingConfig) -> np.ndarray:
    """w_u of users with so many items."""
    return (basket_size + config.user_offset) ** -config.user_power


def item_scores(
    baskets_UI: sp.csr_matrix, weight_U: np.ndarray, item: int, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one item with all others that share two of its users: (columns, scores), columns ascending.

    baskets_UI: 0/1 rows of the item's users (float32, sorted indices). weight_U: their weights.
    """
    users = baskets_UI.shape[0]
    column, inverse, count = np.unique(baskets_UI.indices, return_inverse=True, return_counts=True)
    shared = (count > 1) & (
        column != item
    )  # an item with one common user has no pair; the anchor itself is added below
    keep = shared[inverse]
    row = np.repeat(np.arange(users), np.diff(baskets_UI.indptr))[keep]
    local = (np.cumsum(shared) - 1)[inverse[keep]]
    if not len(local):
        return np.empty(0, np.int64), np.empty(0)
    ones = np.ones(len(local), np.float32)
    a = sp.csr_matrix((ones, (row, local)), shape=(users, int(shared.sum())))
    overlap = (a @ a.T).toarray() + 1.0  # every pair of these users has the anchor in common
    pair = (weight_U[:, None] * weight_U[None]) / (alpha + overlap)
    np.fill_diagonal(pair, 0.0)
    by_item = a.T.tocsr()
    reached = by_item @ pair  # [items, users]: what the item's users v give to user u
    of = np.repeat(np.arange(by_item.shape[0]), np.diff(by_item.indptr))
    scores = np.bincount(of, reached[of, by_item.indices], by_item.shape[0])
    return column[shared].astype(np.int64), scores


def best(
    baskets: sp.csr_matrix, weight: np.ndarray, item: int, names: np.ndarray, config: SwingConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    column, score = item_scores(baskets, weight, item, config.alpha)
    order = np.lexsort((column, -score))[: config.neighbours]
    return np.full(len(order), names[item]), names[column[order]], score[order]


def stack(found: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    a, b, c = (np.concatenate(x) for x in zip(*found))
    return a, b, c
