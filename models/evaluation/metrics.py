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
