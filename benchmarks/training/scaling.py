"""The ladder of `onerec scaling` with several processes at a time, for one large GPU; same table, fit and plot.

python -m benchmarks.training.scaling --data prepared/kuairand --device cuda --jobs 6
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from benchmarks.training.quality import Benchmark, Column, arguments, main
from cli.scaling import write
from models.training.scaling import WIDTHS, Run, run_one

VARIANTS = [str(width) for width in WIDTHS]


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one width with one seed."""
    result = run_one(
        training_sets=sorted((args.prepared / "training").glob("*.parquet")),
        evaluation_set=args.prepared / "evaluation.parquet",
        tokenizer=args.prepared / "tokenizer",
        width=int(variant),
        seed=seed,
        steps=args.steps,
        device=args.device,
        progress=lambda line: None,
    )
    return dataclasses.asdict(result)


def fitted(args: argparse.Namespace) -> str:
    """The ladder's page instead of the harness's table, and its fit beside the results, which stay for a later call."""
    file = args.out / f"scaling_{args.prepared.name}.json"
    saved = json.loads(file.read_text())
    names = {f.name for f in dataclasses.fields(Run)}
    runs = [Run(**{k: v for k, v in r.items() if k in names}) for r in saved["results"]]
    try:
        page = write(runs, args.out, args.prepared.name)
    except ValueError as error:
        return f"no fit: {error}"
    file.write_text(json.dumps(saved | json.loads(file.read_text()), indent=1) + "\n")
    page += "\n".join(f"- {name}: {value}" for name, value in saved["about"].items()) + "\n"
    file.with_suffix(".md").write_text(page)
    return page


if __name__ == "__main__":
    parser = arguments(__doc__.splitlines()[0])
    args = parser.parse_args()
    main(
        Benchmark(
            module="benchmarks.training.scaling",
            title="Runs of the ladder",
            variants=VARIANTS,
            one=one,
            columns=[
                Column(key="parameters", title="N without tables", digits=0),
                Column(key="loss", title="held-out NTP loss"),
            ],
        ),
        parser,
    )
    if not args.worker:
        print(fitted(args))
