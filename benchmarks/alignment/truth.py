"""The simulator's true preferences, as `prepare.py` keeps them: of the day after the one that was trained.

    true_UN = truth_of(evaluation, args)
    of_items(true_UN, evaluation.top(model))

Legend: U evaluation users, N items of the catalogue, K items of a list.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from benchmarks.alignment.measure import TOP, Evaluation
from datasets.world import preference


def truth(folder: Path, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """True preference [U, N] of these users for these items. Raises KeyError for one that was never simulated."""
    tastes, table = pq.read_table(folder / "tastes.parquet"), pq.read_table(folder / "items.parquet")
    taste_of = dict(zip(tastes["user_id"].to_pylist(), tastes["taste"].to_pylist()))
    row = {item: i for i, item in enumerate(table["item_id"].to_pylist())}
    at = [row[i] for i in items.tolist()]
    vectors, quality = np.array(table["vector"].to_pylist())[at], table["quality"].to_numpy()[at]
    return preference(np.array([taste_of[u] for u in users.tolist()]), vectors, quality)


def truth_of(evaluation: Evaluation, args: argparse.Namespace) -> np.ndarray:
    """True preference of the evaluation's users for every item of its catalogue, [U, N]."""
    return truth(args.prepared / "truth", evaluation.data.user_id[evaluation.rows], evaluation.tok.catalogue.item_ids)


def of_items(true_UN: np.ndarray, top_UK: np.ndarray) -> np.ndarray:
    """True preference of each user's items, nan where there is none (-1), [U, K]."""
    return np.where(top_UK >= 0, np.take_along_axis(true_UN, np.maximum(top_UK, 0), 1), np.nan)


def rank_agreement(evaluation: Evaluation, true_UN: np.ndarray, items_UK: np.ndarray) -> float:
    """Mean over users of Spearman's correlation of P-Score and true preference over these items."""
    score, true = evaluation.score(items_UK), of_items(true_UN, items_UK)
    return float(np.nanmean([spearmanr(s[~np.isnan(s)], t[~np.isnan(s)]).statistic for s, t in zip(score, true)]))


def true_numbers(evaluation: Evaluation, args: argparse.Namespace, top_UK: np.ndarray) -> dict[str, float]:
    """Mean true preference of the top 10, and its gain over the pre-trained model's; nothing where no truth is kept."""
    if not (args.prepared / "truth").exists():
        return {}
    true_UN = truth_of(evaluation, args)
    after, before = (np.nanmean(of_items(true_UN, t[:, :TOP]), 1) for t in (top_UK, evaluation.top_before))
    return {"true_reward": float(after.mean()), "true_gain": float((after - before).mean())}
