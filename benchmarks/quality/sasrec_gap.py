"""Why our SASRec is under its published numbers: random batches, and what training on the validation item would add.

    python -m benchmarks.quality.sasrec_gap --results build/quality/results

Reads the JSON files that `benchmarks.quality.variants --variant sasrec_mixed --test` (and `sasrec_known`) wrote, named
<set>_<variant>_<seed>_test.json, and writes sasrec_gap.md. The second variant has seen the validation item, as no row
of the tables may; its number of epochs is fixed beforehand, at about the best epoch of the first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.quality.published import ORDER, PUBLISHED
from benchmarks.quality.report import footer, table
from benchmarks.quality.variants import VARIANTS

HERE = Path(__file__).resolve().parent
VARIANTS_HERE = ("sasrec_mixed", "sasrec_known")
SETS = ("beauty", "sports")
SOURCE = "SASRec, sampled softmax"


def line(found: list[dict], title: str, part: str) -> list[str]:
    """Mean and deviation over seeds of a variant's numbers."""
    values = np.array([[r[part][m] for m in ORDER] for r in found])
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(ORDER))
    epochs = ", ".join(str(r["best_epoch"]) for r in found)
    return [title, *(f"{m:.4f} ± {s:.4f}" for m, s in zip(values.mean(0), spread)), epochs]


def page(results: Path) -> tuple[str, list[dict]]:
    """Tables of both sets, and the results read. Raises ValueError when there are none."""
    text, every = "", []
    for name in SETS:
        rows = [
            [f"{title} (published)", *(f"{v:.4f}" if v is not None else "-" for v in sets[name]), "-"]
            for title, _, sets in PUBLISHED
            if title == SOURCE and name in sets
        ]
        for variant in VARIANTS_HERE:
            found = [json.loads(p.read_text()) for p in sorted(results.glob(f"{name}_{variant}_*_test.json"))]
            every += found
            if found:
                rows.append(line(found, VARIANTS[variant].title, "test"))
        text += f"## {name.capitalize()}, test\n\n{table(['model', *ORDER, 'epochs'], rows)}\n"
    if not every:
        raise ValueError(f"{results} holds no results of {', '.join(VARIANTS_HERE)}; train them first")
    return text, every


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--results", type=Path, default=Path("build/quality/results"))
    p.add_argument("--out", type=Path, default=HERE / "sasrec_gap.md")
    args = p.parse_args()
    text, every = page(args.results)
    args.out.write_text(
        f"# SASRec and its published numbers\n\n{text}Mean ± deviation over seeds; epochs: the best on validation of "
        f"each seed, fixed for the row that has seen the validation item.\n\n{footer(every, 'sasrec_gap')}"
    )
    print(args.out)


if __name__ == "__main__":
    main()
