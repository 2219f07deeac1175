"""The test tables of one set: floors, models re-run here over seeds, and the published numbers beside them.

    python -m benchmarks.quality.table --prepared build/quality/beauty --jobs 2        # -> beauty.md

Means over the seeds with the standard deviation; below, each trained row's interval over users (bootstrap, first seed)
and what each part of OneRec's score adds. The best number of a column is bold. Configurations stand in `variants.py`;
nothing is chosen here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.quality.baselines import co_occurrence, most_popular
from benchmarks.quality.data import Sequences
from benchmarks.quality.jobs import run_all
from benchmarks.quality.protocol import means
from benchmarks.quality.published import ORDER, PUBLISHED
from benchmarks.quality.report import footer, table
from benchmarks.quality.variants import VARIANTS

HERE = Path(__file__).resolve().parent
ROWS = ("sasrec", "tiger", "onerec")
Row = tuple[str, str, list[float | None], list[float]]


def gather(found: list[dict], rows: tuple[str, ...] | list[str]) -> list[Row]:
    """Mean and standard deviation over seeds of each trained row: (title, source, means, deviations)."""
    out: list[Row] = []
    for name in rows:
        mine = [r["test"] for r in found if r["variant"] == name]
        values = np.array([[r[m] for m in ORDER] for r in mine])
        deviation = values.std(0, ddof=1).tolist() if len(values) > 1 else []
        out.append((VARIANTS[name].title, f"here, {len(mine)} seeds", values.mean(0).tolist(), deviation))
    return out


def intervals(found: list[dict], rows: list[str]) -> str:
    """The 95 % interval over users of each trained row's first seed."""
    lines = []
    for name in rows:
        of = next(r for r in found if r["variant"] == name)["test_interval"]
        lines.append([VARIANTS[name].title, *(f"{of[m][0]:.4f} to {of[m][1]:.4f}" for m in ORDER)])
    return table(["95 % over users", *ORDER], lines)


def parts_of_score(found: list[dict], variant: str = "onerec") -> str:
    """Beam, item-level head and co-occurrence alone and together, of the same trainings: means over seeds."""
    mine = [r["test_by_weight"] for r in found if r["variant"] == variant]
    if not mine:
        return ""
    names = {"0 0": "beam", "inf 0": "item-level head", "1 0": "beam + item-level head"}
    names |= {"1 1": "beam + item-level head + log co-occurrence", "inf 1": "item-level head + log co-occurrence"}
    item, co = VARIANTS[variant].weight
    names[f"{item:g} {co:g}"] = f"beam + {item:g} x item-level head + {co:g} x log co-occurrence: OneRec"
    lines = [[title, *(f"{np.mean([r[pair][m] for r in mine]):.4f}" for m in ORDER)] for pair, title in names.items()]
    return table(["OneRec's score", *ORDER], lines)


def markdown(rows: list[Row]) -> str:
    """The table with the best number of each column bold."""
    best = [max((r[2][i] or 0.0) for r in rows) for i in range(len(ORDER))]

    def cell(row: Row, i: int) -> str:
        value = row[2][i]
        if value is None:
            return "-"
        text = f"{value:.4f}".removeprefix("0")
        text = f"**{text}**" if value == best[i] else text
        return text + (f" ± {row[3][i]:.4f}".replace("± 0", "± ") if row[3] else "")

    body = [[name, *(cell(row, i) for i in range(len(ORDER))), row[1]] for row in rows for name in [row[0]]]
    return table(["model", *("Recall@5", "NDCG@5", "Recall@10", "NDCG@10"), "source"], body)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder of one set, written by prepare")
    p.add_argument("--rows", nargs="*", default=list(ROWS), choices=sorted(VARIANTS), help="rows to train")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--device", default="cuda")
    p.add_argument("--jobs", type=int, default=2, help="trainings side by side (2)")
    p.add_argument("--seconds", type=float, default=float("inf"), help="longest training")
    p.add_argument("--results", type=Path, default=Path("build/quality/results"))
    p.add_argument("--out", type=Path, help="default: <set>.md beside this file")
    args = p.parse_args()
    name, sequences = args.prepared.name, Sequences.load(args.prepared)
    rows: list[Row] = [
        (title, "here, untrained", [values[m] for m in ORDER], [])
        for title, values in (
            ("most popular", means(most_popular(sequences, "test"))),
            ("item co-occurrence, window 5", means(co_occurrence(sequences, "test"))),
            ("item co-occurrence, raw counts halved an event", means(co_occurrence(sequences, "test", raw=True))),
        )
    ]
    rows += [(title, source, list(sets[name]), []) for title, source, sets in PUBLISHED if name in sets]
    found = run_all(
        [(variant, name, seed) for variant in args.rows for seed in args.seeds],
        prepared=args.prepared.parent,
        results=args.results,
        device=args.device,
        jobs=args.jobs,
        test=True,
        seconds=args.seconds,
    )
    rows += gather(found, args.rows)
    out = args.out or HERE / f"{name}.md"
    out.write_text(
        f"# {name.capitalize()}, test: leave-last-out, full ranking of {sequences.num_items:,} items, "
        f"{sequences.users:,} users\n\n{markdown(rows)}\n"
        "A hit is the exact item. Items of the user's history are left out of every list ranked here, since no target "
        "is in it; the published rows state no rule. ± is the standard deviation over seeds.\n\n"
        f"{intervals(found, args.rows)}\n{parts_of_score(found)}\n{footer(found, 'table')}"
    )
    print(out)


if __name__ == "__main__":
    main()
