"""Every variant on the validation sets: what the levers are worth, and what the search has cost.

    python -m benchmarks.quality.search --prepared build/quality --jobs 2        # minutes on one GPU -> ablation.md

No test number is computed. OneRec's configuration in `variants.py` is the one with the best validation NDCG@10 averaged
over the sets, so one configuration serves all of them. The table names the number of trainings and their device time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.quality.jobs import run_all
from benchmarks.quality.protocol import METRICS, SELECT_BY
from benchmarks.quality.report import footer, table
from benchmarks.quality.variants import VARIANTS

HERE = Path(__file__).resolve().parent


def best_weights(found: list[dict], variant: str) -> list[str]:
    """The grid's pair with the best mean validation NDCG@10 of a variant over sets and seeds, as a table's row."""
    mine = [r["validation_by_weight"] for r in found if r["variant"] == variant and "validation_by_weight" in r]
    if not mine:
        return [VARIANTS[variant].title, "-", "-", "-"]
    score = {pair: float(np.mean([r[pair][SELECT_BY] for r in mine])) for pair in mine[0]}
    item, co = max(score, key=lambda pair: score[pair]).split()
    return [VARIANTS[variant].title, item, co, f"{max(score.values()):.4f}"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder with one prepared folder a set")
    p.add_argument("--sets", nargs="+", default=["beauty", "sports"])
    p.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), help="only these (default: all)")
    p.add_argument("--seeds", type=int, nargs="+", default=[1])
    p.add_argument("--device", default="cuda")
    p.add_argument("--jobs", type=int, default=2, help="trainings side by side (2)")
    p.add_argument("--epochs", type=int)
    p.add_argument("--seconds", type=float, default=float("inf"), help="longest training")
    p.add_argument("--results", type=Path, default=Path("build/quality/results"))
    p.add_argument("--out", type=Path, default=HERE / "ablation.md")
    args = p.parse_args()
    names = args.variants or list(VARIANTS)
    wanted = [(v, s, seed) for v in names for s in args.sets for seed in args.seeds]
    found = run_all(
        wanted,
        prepared=args.prepared,
        results=args.results,
        device=args.device,
        jobs=args.jobs,
        test=False,
        epochs=args.epochs,
        seconds=args.seconds,
    )
    rows = []
    for name in names:
        mine = [r for r in found if r["variant"] == name]
        cells = [
            f"{np.mean([r['validation'][m] for r in mine if r['set'] == s]):.4f}" for s in args.sets for m in METRICS
        ]
        rows.append([VARIANTS[name].title, *cells, f"{np.mean([r['seconds'] for r in mine]):.0f}"])
    head = ["variant", *(f"{s} {m}" for s in args.sets for m in METRICS), "seconds"]
    budget = sum(r["seconds"] for r in found)
    note = f"{len(found)} trainings, {budget:.0f} s of training in all ({args.jobs} side by side), validation only."
    weights = table(
        ["variant", "item weight", "co-occurrence weight", SELECT_BY], [best_weights(found, n) for n in names]
    )
    args.out.write_text(
        f"# Levers, on the validation sets\n\n{table(head, rows)}\n"
        "Weights of the joint score (inf: without the beam) with the best mean over the sets:\n\n"
        f"{weights}\n{note}\n\n{footer(found, 'search')}"
    )
    print(args.out)


if __name__ == "__main__":
    main()
