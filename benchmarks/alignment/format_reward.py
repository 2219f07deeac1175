"""Legality of unconstrained generation over the steps: no format reward, the top 5 of 128 samples, 5 of 128 at random.

    python -m benchmarks.alignment.format_reward --prepared prepared/kuairand --seeds 1 2 3 --steps 200 --jobs 9

A remake of the paper's figure; `free beam` variants generate the P-Score's groups without the trie as well, which is
the setting in which the paper saw legality fall. Also writes the curves as an SVG.
"""

from __future__ import annotations

import argparse
import html
from typing import Any

import numpy as np

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import NO_POLICY, aligned, evaluation_of, loop_numbers

# Louder and longer than the daily default, which has no need of it: there the trie holds every beam to the catalogue.
RL = {
    "rollout.free_samples": 128,
    "preference.format_k": 5,
    "preference.format_weight": 20.0,
    "rsft_weight": 0.2,
    "lr_dense": 8e-5,
    "lr_sparse": 1e-4,
}
NONE = {"preference.format_weight": 0.0}
TOP = {"preference.format_selection": "top"}
FREE = {"rollout.search": "free_beam"}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": RL | NONE,
    "top 5": RL | TOP,
    "random 5": RL,
    "none, free beam": RL | NONE | FREE,
    "top 5, free beam": RL | TOP | FREE,
    "random 5, free beam": RL | FREE,
    "no policy reward": RL | NONE | NO_POLICY,
}
COLOURS = ("#b2182b", "#ef8a62", "#2166ac", "#762a83", "#af8dc3", "#1b7837", "#888888")


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    evaluation = evaluation_of(args)
    marks = set(np.linspace(1, args.steps, args.points).round().astype(int).tolist())
    curve = [{"step": 0, "legality": evaluation.legality(evaluation.pretrained, seed)}]

    def look(policy, point) -> None:
        if point["step"] in marks:
            policy.eval()
            curve.append({"step": point["step"], "legality": evaluation.legality(policy, seed)})

    changes = VARIANTS[variant] | {"users_per_step": args.users_per_step}
    model, metrics = aligned(args, seed, changes, look)
    numbers = evaluation.numbers(model, seed, passes=False) | loop_numbers(metrics)
    if curve[-1]["step"] < metrics["steps"]:  # the passes over a small day ended before --steps
        curve.append({"step": metrics["steps"], "legality": numbers["legality"]})
    values = [p["legality"] for p in curve]
    return numbers | {"legality_first": values[0], "legality_highest": max(values), "curve": curve}


def curves(results: list[dict[str, Any]]) -> str:
    """The mean legality at each step, one row a step, one column a variant."""
    if not results:
        return ""
    names = list(dict.fromkeys(r["variant"] for r in results))
    steps = [p["step"] for p in results[0]["curve"]]
    mean = {n: np.mean([[p["legality"] for p in r["curve"]] for r in results if r["variant"] == n], 0) for n in names}
    lines = ["Legal share of free samples over the steps:", "", "| step | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    lines += [f"| {s} | " + " | ".join(f"{mean[n][i]:.3f}" for n in names) + " |" for i, s in enumerate(steps)]
    return "\n".join(lines) + "\n\n" + svg(steps, mean) + "\n"


def svg(steps: list[int], mean: dict[str, np.ndarray], width: int = 640, height: int = 300) -> str:
    """The curves as an inline drawing."""
    low = max(0.0, min(float(v.min()) for v in mean.values()) - 0.05)

    def at(step: float, value: float) -> str:
        x = 50 + (width - 220) * step / max(steps[-1], 1)
        return f"{x:.1f},{20 + (height - 60) * (1 - (value - low) / (1 - low)):.1f}"

    size = f'width="{width}" height="{height}" font-family="sans-serif" font-size="11"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>']
    for tick in np.linspace(low, 1, 5):
        x, y = at(0, tick).split(",")
        parts.append(f'<text x="{float(x) - 6}" y="{y}" text-anchor="end">{100 * tick:.0f} %</text>')
    for i, (name, values) in enumerate(mean.items()):
        points = " ".join(at(s, v) for s, v in zip(steps, values))
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts.append(f'<text x="{width - 160}" y="{30 + 16 * i}" fill="{colour}">{html.escape(name)}</text>')
    parts.append(f'<text x="{width / 2 - 80}" y="{height - 10}">alignment step (0 to {steps[-1]})</text></svg>')
    return "".join(parts)


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument("--points", type=int, default=10, help="looks at legality on the way and at the end (10)")
    parser.add_argument("--users-per-step", type=int, default=128, help="each with 128 free samples (128)")
    main(
        Benchmark(
            module="benchmarks.alignment.format_reward",
            title="Format reward: legality of unconstrained generation",
            variants=list(VARIANTS),
            changes=VARIANTS,
            one=one,
            columns=[
                Column(key="legality_first", title="legal before", digits=3),
                Column(key="legality_highest", title="highest", digits=3),
                Column(key="legality", title="at the end", digits=3),
                Column(key="p_score", title="P-Score top 10"),
                Column(key="recall", title="recall@50"),
                Column(key="recall_change", title="change"),
            ],
            extra=curves,
        ),
        parser,
    )
