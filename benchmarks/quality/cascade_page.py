"""One model or a cascade: the page that sets quality beside FLOPs, latency, memory and cost, and the two plots.

    python -m benchmarks.quality.cascade_page --cost build/quality/cascade_cost.json

Quality comes from kuairand.json (`kuairand_table`), or with `--printed` from the lines that `cascade` printed, where
its lists are lost (without intervals, then); cost from `cascade_cost`. Nothing is computed here but means and ratios.
Writes cascade.md, and into `--figures` kuairand_recall.svg and cascade.svg.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.quality.cascade import ROWS
from benchmarks.quality.report import footer, table

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parents[1] / "docs" / "figures"
OURS, OTHERS, GRID = "#1b6ca8", "#7a7a7a", "#e4e4e4"
ONEREC = "OneRec, once"


def systems(models: list[dict[str, Any]], cost: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], bool]]:
    """(quality, cost, whether only its retrieval counts) of every row of the page."""
    by_name = {m["model"]: m for m in models}
    out = []
    for name in (ONEREC, f"{ONEREC}, RSFT + ECPO"):
        if name in by_name:
            out.append((by_name[name], cost["OneRec"], False))
    for name in ROWS.values():
        if name in by_name:
            candidates = by_name[name]["about"]["candidates"]
            out.append((by_name[name], cost[f"cascade, {candidates} candidates"], False))
    if "two-tower" in by_name:
        out.append((by_name["two-tower"], next(v for k, v in cost.items() if k.startswith("cascade")), True))
    return out


def printed(files: list[Path], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the cascade from lines `<seconds> s  <model>, seed <n>: <metrics as JSON>`; no intervals."""
    values: dict[str, list[dict[str, float]]] = {}
    for file in files:
        for title, metrics in re.findall(r"s  (.+), seed \d+: (\{.+\})", file.read_text()):
            values.setdefault(title, []).append(json.loads(metrics))
    candidates = {title: {"candidates": chosen[kind]["candidates"]} for kind, title in ROWS.items()}
    out = []
    for title, found in values.items():
        row: dict[str, Any] = {"model": title, "about": candidates.get(title, {}), "interval": None}
        for name in found[0]:
            row[name] = float(np.mean([f[name] for f in found]))
            row[f"{name}_sd"] = float(np.std([f[name] for f in found], ddof=1)) if len(found) > 1 else None
        out.append(row)
    return out


def mflop(found: dict[str, Any], retrieval_only: bool) -> float:
    flops = found["flops"]
    return (flops["retrieval"] if retrieval_only else sum(flops.values())) / 1e6


def run_of(found: dict[str, Any], batch: int, precision: str) -> dict[str, Any]:
    return next(r for r in found["runs"] if r["batch"] == batch and r["precision"] == precision)


def quality_table(rows: list[tuple[dict[str, Any], dict[str, Any], bool]]) -> str:
    head = ["system", "recall@10", "recall@50", "recall@100", "ndcg@10", "95 % of recall@50", "MFLOP a request"]
    body = []
    for model, found, retrieval in rows:
        cells = [f"{model[c]:.4f}" + (f" ± {model[c + '_sd']:.4f}" if model[f"{c}_sd"] else "") for c in head[1:5]]
        interval = "{:.4f} to {:.4f}".format(*model["interval"]) if model["interval"] else "-"
        body.append([model["model"], *cells, interval, f"{mflop(found, retrieval):,.0f}"])
    return table(head, body)


def cost_table(cost: dict[str, Any]) -> str:
    batches = sorted({r["batch"] for found in cost.values() for r in found["runs"]})
    precisions = sorted({r["precision"] for found in cost.values() for r in found["runs"]}, reverse=True)
    head = [
        "system",
        "precision",
        *(f"batch {b}, p50 (p99) ms" for b in batches),
        "users/s at best",
        "device s a million",
    ]
    head += ["share of peak FLOP/s", "weights, MiB", f"beside them at batch {batches[-1]}, MiB"]
    body = []
    for name, found in cost.items():
        for precision in precisions:
            runs = [run_of(found, b, precision) for b in batches]
            best = min(runs, key=lambda r: r["p50"] / r["batch"])
            rate = 1e3 * best["batch"] / best["p50"]
            peak = runs[-1]["peak_bytes"]
            cells = [f"{r['p50']:.2f} ({r['p99']:.2f})" for r in runs]
            cells += [f"{rate:,.0f}", f"{1e6 / rate:.1f}", f"{best['mfu']:.2%}" if best["mfu"] else "-"]
            cells += [f"{found['weight_bytes'] / 2**20:.1f}", f"{peak / 2**20:,.0f}" if peak else "-"]
            body.append([name, precision, *cells])
    return table(head, body)


def parts_table(cost: dict[str, Any]) -> str:
    lines = [
        [name, ", ".join(f"{k} {v / 1e6:,.1f}" for k, v in found["flops"].items())] for name, found in cost.items()
    ]
    return table(["MFLOP of a request, from shapes", "by part"], lines)


def save(figure: Figure, path: Path) -> None:
    """A small SVG that is the same bytes for the same numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "onerec"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")


def recall_plot(models: list[dict[str, Any]], path: Path) -> None:
    """recall@50 of every model with its interval over users, the best on top."""
    rows = sorted(models, key=lambda m: m["recall@50"])
    figure = Figure(figsize=(7.2, 0.32 * len(rows) + 0.8))
    axes = figure.subplots()
    for y, m in enumerate(rows):
        colour = OURS if m["model"].startswith("OneRec") else OTHERS
        axes.plot(m["interval"], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(m["recall@50"], y, "o", color=colour, markersize=5)
        axes.annotate(f"{m['recall@50']:.3f}", (m["interval"][1], y), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [m["model"] for m in rows])
    axes.set_xlabel("recall@50, unseen positives of 2022-05-06 (95 % over users)")
    finish(axes)
    save(figure, path)


def cascade_plot(rows: list[tuple[dict[str, Any], dict[str, Any], bool]], path: Path) -> None:
    """recall@50 against FLOPs of a request."""
    figure = Figure(figsize=(7.2, 3.4))
    axes = figure.subplots()
    for (model, found, retrieval), marker in zip(rows, "osD^v"):
        colour = OURS if model["model"].startswith("OneRec") else OTHERS
        x, y = mflop(found, retrieval), model["recall@50"]
        if model["interval"]:
            axes.plot([x, x], model["interval"], color=colour, linewidth=1.2)
        axes.plot(x, y, marker, color=colour, markersize=7, label=f"{model['model']}: {y:.3f}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    axes.set_xlabel("MFLOP a request, from shapes")
    axes.set_ylabel("recall@50 (95 % over users)")
    finish(axes)
    save(figure, path)


def finish(axes: Any) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quality", type=Path, default=HERE / "kuairand.json")
    p.add_argument("--cost", type=Path, required=True)
    p.add_argument("--figures", type=Path, default=FIGURES)
    p.add_argument("--out", type=Path, default=HERE / "cascade.md")
    p.add_argument("--printed", type=Path, nargs="+", default=[], help="what cascade printed, instead of its lists")
    p.add_argument("--chosen", type=Path, help="what cascade had chosen, with --printed")
    args = p.parse_args()
    models, cost = json.loads(args.quality.read_text())["models"], json.loads(args.cost.read_text())
    every = models
    if args.printed:
        own = printed(args.printed, json.loads(args.chosen.read_text()))
        models = [m for m in models if m["model"] not in {row["model"] for row in own}] + own
    rows, about = systems(models, cost["systems"]), cost["about"]
    args.out.write_text(
        "# One model or a cascade, KuaiRand-Pure\n\nQuality as in [kuairand.md](kuairand.md); the cascade is two-tower "
        "retrieval and DIN + SIM ranking (`cascade.py`), all its choices made on the day before.\n"
        + ("Rows without an interval are means of what the run printed; its lists were lost.\n" if args.printed else "")
        + "\n"
        f"{quality_table(rows)}\nOne request, full histories, from host memory to host memory, CUDA graphs without a "
        f"compiler; OneRec with a beam of {about['beam']}, {about['items']:,} items, random weights. The best of the "
        f"batches gives users/s and device seconds a million requests.\n\n{cost_table(cost['systems'])}\n"
        f"{parts_table(cost['systems'])}\nCost measured on {about['device']}, torch {about['torch']}, commit "
        f"{about['commit']}, {about['date']}, `python -m benchmarks.quality.cascade_cost`, three rounds of "
        f"{about['repeats']} requests. This page:\n" + footer([], "cascade_page")
    )
    recall_plot(every, args.figures / "kuairand_recall.svg")
    cascade_plot(rows, args.figures / "cascade.svg")
    print(args.out)


if __name__ == "__main__":
    main()
