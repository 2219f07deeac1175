"""`onerec scaling`: how the loss falls with the size of the model, on the same data; a fit, its intervals and a plot.

onerec scaling --data prepared/kuairand --out var/scaling --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import command

if TYPE_CHECKING:
    from models.training.scaling import Law, Run

EXAMPLE = "onerec scaling --data prepared/kuairand --out var/scaling --seeds 1 2 3"


def add(commands) -> None:
    parser = command(commands, "scaling", "train a ladder of sizes and fit L(N) = E + A/N^alpha", EXAMPLE)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="training/*.parquet, evaluation.parquet, tokenizer/ (benchmarks.training.prepare)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for scaling.md, scaling.json, scaling.svg")
    parser.add_argument("--widths", type=int, nargs="+", help="widths of the model (16 to 128)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=480, help="training steps, at least (480)")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from models.training.scaling import WIDTHS, run_one

    sets = sorted((args.data / "training").glob("*.parquet"))
    if not sets or not (args.data / "evaluation.parquet").is_file():
        raise ValueError(
            f"{args.data} holds no training/*.parquet and evaluation.parquet; write it with"
            " python -m benchmarks.training.prepare"
        )
    runs = []
    for width in args.widths or WIDTHS:
        for seed in args.seeds:
            runs.append(
                run_one(
                    training_sets=sets,
                    evaluation_set=args.data / "evaluation.parquet",
                    tokenizer=args.data / "tokenizer",
                    width=width,
                    seed=seed,
                    steps=args.steps,
                    device=args.device,
                    progress=lambda line: None,
                )
            )
            print(
                f"width {width}, seed {seed}: N {runs[-1].parameters:,}, held-out loss {runs[-1].loss:.4f}", flush=True
            )
    print(write(runs, args.out, args.data.name))


def write(runs: Sequence[Run], out: Path, name: str) -> str:
    """scaling_<name>.{md,json,svg}: the runs, the fit with 95 % intervals, the plot. Returns the page."""
    from models.training.scaling import bootstrap, fit

    law, intervals = fit(runs), bootstrap(runs, seed=0)
    by_size: dict[int, list[Run]] = {}
    for one in runs:
        by_size.setdefault(one.parameters, []).append(one)
    lines = [f"# Scaling on {name}", "", "| width | N without tables | with tables | held-out NTP loss | L(N) |"]
    lines.append("|---|---|---|---|---|")
    for n, group in sorted(by_size.items()):
        losses = [g.loss for g in group]
        spread = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
        mean = sum(losses) / len(losses)
        lines.append(
            f"| {group[0].width} | {n:,} | {group[0].with_tables:,} | {mean:.4f}{spread} | {float(law(n)):.4f} |"
        )
    numbers = ", ".join(
        f"{key} = {getattr(law, key):.4g} ({low:.4g} to {high:.4g})" for key, (low, high) in intervals.items()
    )
    lines += ["", f"L(N) = E + A / N^alpha: {numbers}; 95 % intervals, bootstrap over {len(runs)} runs.", ""]
    lines += [f"![loss over N](scaling_{name}.svg)", ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"scaling_{name}.md").write_text("\n".join(lines))
    saved = {"runs": [dataclasses.asdict(r) for r in runs], "fit": dataclasses.asdict(law), "intervals": intervals}
    (out / f"scaling_{name}.json").write_text(json.dumps(saved, indent=1) + "\n")
    plot(runs, law, f"Held-out NTP loss over model size, {name}", out / f"scaling_{name}.svg")
    return "\n".join(lines)


def plot(runs: Sequence[Run], law: Law, title: str, path: Path) -> None:
    """Runs as points and the fitted curve, over N on a logarithmic axis; an SVG of the same bytes for the same runs."""
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    parameters = np.array([r.parameters for r in runs], float)
    grid = np.geomspace(parameters.min() / 1.2, parameters.max() * 1.2, 80)
    figure = Figure(figsize=(6, 3.8))
    axes = figure.subplots()
    axes.plot(grid, law(grid), label="E + A / N^alpha")
    axes.plot(parameters, [r.loss for r in runs], "o", markersize=5, label="runs")
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(parameters)), [_short(n) for n in sorted(set(parameters))])
    axes.minorticks_off()
    axes.set(title=title, xlabel="N, parameters without tables", ylabel="held-out NTP loss, nats an item")
    axes.grid(color="#e4e4e4")
    axes.legend(frameon=False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "onerec"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")


def _short(value: float) -> str:
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
