"""On the simulator, where true preference is known: does alignment raise the true reward of what is recommended?

    python -m benchmarks.alignment.worlds --out prepared/sim --work build/worlds --seeds 1 2 3
    python -m benchmarks.alignment.true_reward --prepared prepared/sim --steps 60 --seeds 1 2 3

Reports the mean true preference of the top 10 before and after, the rank correlation of P-Score and true preference
(of random items, and of what the policy generates), and both over the steps: where P-Score rises and true reward does
not, the policy cheats the proxy. Each seed has a world, a pre-trained model and a reward model of its own.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import COMMON, STRONG, TOP, aligned, evaluation_of
from benchmarks.alignment.truth import of_items, rank_agreement, truth_of

VARIANTS: dict[str, dict[str, Any] | None] = {
    **COMMON,
    "ecpo, stronger": STRONG,
    "ecpo without rsft": STRONG | {"preference.item_policy_weight": 3.0, "rsft_weight": 0.0},
    "ecpo, stronger, seen items in the groups": STRONG | {"rollout.seen": True},
}
LOOKS = 2  # on the way


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    evaluation = evaluation_of(args)
    true_UN = truth_of(evaluation, args)

    def by_user(top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean P-Score and mean true preference of each user's top 10."""
        return np.nanmean(evaluation.score(top[:, :TOP]), 1), np.nanmean(of_items(true_UN, top[:, :TOP]), 1)

    def point(step: int, score: np.ndarray, true: np.ndarray) -> dict[str, float]:
        return {"step": step, "p_score": float(score.mean()), "true_reward": float(true.mean())}

    score_0, true_0 = by_user(evaluation.top_before)
    model, top, curve = evaluation.pretrained, evaluation.top_before, [point(0, score_0, true_0)]
    if (changes := VARIANTS[variant]) is not None:

        def look(policy, seen) -> None:
            if seen["step"] % max(1, args.steps // (LOOKS + 1)) == 0 and seen["step"] < args.steps:
                policy.eval()
                curve.append(point(seen["step"], *by_user(evaluation.top(policy))))

        model, _ = aligned(args, seed, changes, look)
        top = evaluation.top(model)
        curve.append(point(args.steps, *by_user(top)))
    score, true = by_user(top)
    rng = np.random.default_rng(seed)
    random = np.stack([rng.permutation(true_UN.shape[1])[:100] for _ in evaluation.rows])
    recall = evaluation.recall(top)
    gain = true - true_0
    return {
        "true_reward": float(true.mean()),
        "true_gain": float(gain.mean()),
        "true_gain_users": float(1.96 * gain.std() / len(gain) ** 0.5),
        "p_score": float(score.mean()),
        "p_score_gain": float((score - score_0).mean()),
        "rank_random": rank_agreement(evaluation, true_UN, random),
        "rank_generated": rank_agreement(evaluation, true_UN, top),
        "recall": float(recall.mean()),
        "recall_change": float((recall - evaluation.recall(evaluation.top_before)).mean()),
        "honest": float(((score > score_0) & (gain > 0)).mean()),
        "cheated": float(((score > score_0) & (gain < 0)).mean()),
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
    main(
        Benchmark(
            module="benchmarks.alignment.true_reward",
            title="True reward of the top 10 on the simulator",
            variants=list(VARIANTS),
            changes=VARIANTS,
            one=one,
            columns=[
                Column(key="true_reward", title="true reward", digits=3),
                Column(key="true_gain", title="gain", digits=3),
                Column(key="true_gain_users", title="its half-width over users", digits=3),
                Column(key="p_score", title="P-Score"),
                Column(key="p_score_gain", title="gain"),
                Column(key="rank_random", title="rank correlation, random items", digits=3),
                Column(key="rank_generated", title="generated items", digits=3),
                Column(key="honest", title="users with both up", digits=3),
                Column(key="cheated", title="P-Score up, true down", digits=3),
                Column(key="recall", title="recall@50"),
                Column(key="recall_change", title="change"),
                Column(key="best_possible", title="best possible", digits=3),
                Column(key="random_items", title="random items", digits=3),
            ],
            extra=curves,
        ),
        arguments(__doc__ or ""),
    )
