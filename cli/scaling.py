"""`onerec scaling`: how the loss falls with the size of the model, on the same data; a fit, its intervals and a plot.

onerec scaling --data prepared/kuairand --out var/scaling --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from html import escape
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
    (out / f"scaling_{name}.svg").write_text(plot(runs, law, f"Held-out NTP loss over model size, {name}"))
    return "\n".join(lines)


def plot(runs: Sequence[Run], law: Law, title: str) -> str:
    """Points and the fitted curve over log N, as SVG."""
    import numpy as np

    width, height, left, right, top, bottom = 520, 320, 60, 20, 34, 46
    n = np.array([r.parameters for r in runs], float)
    grid = np.geomspace(n.min() / 1.2, n.max() * 1.2, 80)
    curve, losses = law(grid), np.array([r.loss for r in runs])
    low, high = min(curve.min(), losses.min()), max(curve.max(), losses.max())
    low, high = low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3

    def at(x: float, y: float) -> str:
        across = (np.log(x) - np.log(grid[0])) / (np.log(grid[-1]) - np.log(grid[0]))
        down = (high - y) / (high - low)
        return f"{left + across * (width - left - right):.1f},{top + down * (height - top - bottom):.1f}"

    parts = [f'<text x="{left}" y="20" font-size="14">{escape(title)}</text>']
    for y in np.linspace(low, high, 5):
        x, place = at(grid[0], y).split(",")
        parts.append(f'<line x1="{x}" y1="{place}" x2="{width - right}" y2="{place}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{float(place) + 4:.1f}" text-anchor="end">{y:.2f}</text>')
    for x in sorted(set(n)):
        parts.append(f'<text x="{at(x, low).split(",")[0]}" y="{height - 26}" text-anchor="middle">{_short(x)}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">N, parameters without tables</text>')
    line = " ".join(at(x, y) for x, y in zip(grid, curve))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>')
    for x, y in zip(n, losses):
        cx, cy = at(x, y).split(",")
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="3.5" fill="#d1495b"/>')
    font = 'font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {font}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


def _short(value: float) -> str:
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
