"""On the simulator, where true preference is known: does alignment raise the true reward of what is recommended?

    python -m benchmarks.alignment.true_reward --prepared prepared/simulated --seeds 1 2 3 --jobs 3

Reports the mean true preference of the top 10 before and after, the rank correlation of P-Score and true preference
(of random items, and of what the policy generates), and both over the steps: where P-Score rises and true reward does
not, the policy cheats the proxy. Reads truth/*.parquet of the simulator.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import TOP, aligned, evaluation_of

STRONG = {"users_per_step": 64}
LITTLE = {"preference.policy_weight": 3.0, "preference.item_policy_weight": 3.0, "rsft_weight": 0.3}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "pretrained": None,
    "rsft only": {"preference.policy_weight": 0.0, "preference.item_policy_weight": 0.0},
    "ecpo (daily default)": {},
    "ecpo, stronger": STRONG | {"preference.policy_weight": 3.0, "preference.item_policy_weight": 1.0},
    "ecpo, stronger, rsft only a little": STRONG | LITTLE,
    "ecpo without rsft": STRONG | LITTLE | {"rsft_weight": 0.0},
}
TASTE_WEIGHT, QUALITY_WEIGHT = 3.5, 0.4  # of the simulator's preference (datasets/world.py)
LOOKS = 2


def truth(folder: Path, users: np.ndarray, day: str | None, items: np.ndarray) -> np.ndarray:
    """True preference [U, N] of these users for these items on a day (the last one by default)."""
    tastes = pq.read_table(folder / "tastes.parquet")
    dates = tastes["dt"].to_pylist()
    wanted = max(dates) if day is None else next(d for d in dates if d.isoformat() == day)
    of = {u: t for u, t, d in zip(tastes["user_id"].to_pylist(), tastes["taste"].to_pylist(), dates) if d == wanted}
    table = pq.read_table(folder / "items.parquet")
    row = {item: i for i, item in enumerate(table["item_id"].to_pylist())}
    at = [row[i] for i in items.tolist()]
    vectors, quality = np.array(table["vector"].to_pylist())[at], table["quality"].to_numpy()[at]
    taste = np.array([of[u] for u in users.tolist()])
    return TASTE_WEIGHT * taste @ vectors.T + QUALITY_WEIGHT * quality


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    evaluation = evaluation_of(args)
    items = evaluation.tok.catalogue.item_ids
    true_UN = truth(args.prepared / "truth", evaluation.data.user_id[evaluation.rows], args.day, items)

    def rewards(model) -> dict[str, float]:
        top = evaluation.top(model, k=TOP)
        real = top >= 0
        true = np.take_along_axis(true_UN, np.maximum(top, 0), 1)
        return {"true_reward": float(true[real].mean()), "p_score": float(np.nanmean(evaluation.score(top)))}

    def agreement(model) -> dict[str, float]:
        """Mean over users of Spearman's correlation, over 100 random items and over the model's top 50."""
        rng = np.random.default_rng(seed)
        random = np.stack([rng.permutation(len(items))[:100] for _ in evaluation.rows])
        found = {}
        for name, chosen in (("random", random), ("generated", evaluation.top(model))):
            score, true = evaluation.score(chosen), np.take_along_axis(true_UN, np.maximum(chosen, 0), 1)
            each = [spearmanr(s[~np.isnan(s)], t[~np.isnan(s)]).statistic for s, t in zip(score, true)]
            found[f"rank_{name}"] = float(np.nanmean(each))
        return found

    def by_user(model) -> tuple[np.ndarray, np.ndarray]:
        """Mean P-Score and mean true preference of each user's top 10."""
        top = evaluation.top(model, k=TOP)
        true = np.where(top >= 0, np.take_along_axis(true_UN, np.maximum(top, 0), 1), np.nan)
        return np.nanmean(evaluation.score(top), 1), np.nanmean(true, 1)

    before = rewards(evaluation.pretrained)
    model, curve = evaluation.pretrained, [{"step": 0, **before}]
    if (changes := VARIANTS[variant]) is not None:

        def look(policy, point) -> None:
            if point["step"] % max(1, args.steps // (LOOKS + 1)) == 0 and point["step"] < args.steps:
                policy.eval()
                curve.append({"step": point["step"], **rewards(policy)})

        model, _ = aligned(args, seed, changes, look)
    after = rewards(model)
    (p0, t0), (p1, t1) = by_user(evaluation.pretrained), by_user(model)
    recall = evaluation.recall(evaluation.top(model))
    return {
        **after,
        **agreement(model),
        "true_gain": after["true_reward"] - before["true_reward"],
        "p_score_gain": after["p_score"] - before["p_score"],
        "recall": float(recall.mean()),
        "honest": float(((p1 > p0) & (t1 > t0)).mean()),
        "cheated": float(((p1 > p0) & (t1 < t0)).mean()),
        "best_possible": float(np.sort(true_UN, 1)[:, -TOP:].mean()),
        "random_items": float(true_UN.mean()),
        "curve": curve,
    }


def curves(results: list[dict[str, Any]]) -> str:
    """True reward and P-Score over the steps, means over seeds."""
    lines = [
        "Over the steps (true reward / P-Score of the top 10):",
        "",
        "| variant | step: true / P-Score |",
        "|---|---|",
    ]
    for name in dict.fromkeys(r["variant"] for r in results):
        rows = [r["curve"] for r in results if r["variant"] == name]
        points = []
        for at in range(len(rows[0])):
            true, score = (np.mean([row[at][k] for row in rows]) for k in ("true_reward", "p_score"))
            points.append(f"{rows[0][at]['step']}: {true:.3f} / {score:.4f}")
        lines.append(f"| {name} | {', '.join(points)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument("--day", help="day of the truth, as 2025-01-08 (the last one)")
    main(
        Benchmark(
            module="benchmarks.alignment.true_reward",
            title="True reward of the top 10 on the simulator",
            variants=list(VARIANTS),
            one=one,
            columns=[
                Column(key="true_reward", title="true reward", digits=3),
                Column(key="true_gain", title="gain", digits=3),
                Column(key="p_score", title="P-Score"),
                Column(key="p_score_gain", title="gain"),
                Column(key="rank_random", title="rank correlation, random items", digits=3),
                Column(key="rank_generated", title="generated items", digits=3),
                Column(key="honest", title="users with both up", digits=3),
                Column(key="cheated", title="P-Score up, true down", digits=3),
                Column(key="recall", title="recall@50"),
                Column(key="best_possible", title="best possible", digits=3),
                Column(key="random_items", title="random items", digits=3),
            ],
            extra=curves,
        ),
        parser,
    )
