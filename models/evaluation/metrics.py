"""Recall and NDCG at item level. A hit is the exact item, never its semantic ID alone."""

from __future__ import annotations

import numpy as np

CUTOFFS_RECALL = (10, 50, 100)
CUTOFFS_NDCG = (10, 50, 100)


def ranking_metrics(ranked_UK: np.ndarray, relevant: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Per-user values of every metric, each [U].

    ranked_UK: item per rank, -1 where a list is shorter. relevant: each user's relevant items, all non-empty.
    recall@k = hits in the first k over all relevant items; ndcg@k = DCG over the best DCG possible in k.
    """
    hit_UK = np.stack([np.isin(row, items) & (row >= 0) for row, items in zip(ranked_UK, relevant)])
    count = np.array([len(r) for r in relevant])
    discount = 1.0 / np.log2(np.arange(2, ranked_UK.shape[1] + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    out = {f"recall@{k}": hit_UK[:, :k].sum(1) / count for k in CUTOFFS_RECALL}
    for k in CUTOFFS_NDCG:
        out[f"ndcg@{k}"] = (hit_UK[:, :k] * discount[:k]).sum(1) / ideal[np.minimum(count, min(k, len(discount)))]
    return out


def bootstrap_interval(values: np.ndarray, seed: int, rounds: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean over users, by resampling users."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(rounds)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def next_item_metrics(
    ranked_UK: np.ndarray, target_U: np.ndarray, cutoffs: tuple[int, ...] = (5, 10)
) -> dict[str, np.ndarray]:
    """`ranking_metrics` of users with one relevant item each: values of every metric, each [U].

    ranked_UK: item per rank, -1 where a list is shorter. Recall@k is 1 when the target stands among the first k,
    NDCG@k then is 1 / log2(rank + 1). Raises ValueError when the lists are shorter than a cutoff.
    """
    if ranked_UK.shape[1] < max(cutoffs):
        raise ValueError(f"lists hold {ranked_UK.shape[1]} items; rank at least {max(cutoffs)}")
    hit_UK = (ranked_UK == target_U[:, None]) & (target_U >= 0)[:, None]
    gain_UK = hit_UK / np.log2(np.arange(2, ranked_UK.shape[1] + 2))
    out = {f"recall@{k}": hit_UK[:, :k].any(1).astype(float) for k in cutoffs}
    return out | {f"ndcg@{k}": gain_UK[:, :k].sum(1) for k in cutoffs}
