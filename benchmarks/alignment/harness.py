"""What the alignment benchmarks share: arguments, one process a (variant, seed), and tables with intervals over seeds.

A benchmark is a list of variants, a function `one(variant, seed, arguments) -> dict of numbers` and the columns of its
table. `main` runs every (variant, seed) as a process of its own, `--jobs` at a time, and writes NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.machine import REPOSITORY, commit, hardware

One = Callable[[str, int, argparse.Namespace], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A number of `one`'s result in the table; `digits` after the point."""

    key: str
    title: str
    digits: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """`module` is its own name for `python -m`; `notes` stands under the table."""

    module: str
    title: str
    variants: Sequence[str]
    one: One
    columns: Sequence[Column]
    notes: str = ""
    extra: Callable[[list[dict[str, Any]]], str] = lambda results: ""


def arguments(description: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--prepared", type=Path, required=True, help="folder written by benchmarks.alignment.prepare")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--steps", type=int, default=120, help="alignment steps (120)")
    p.add_argument("--users", type=int, default=1000, help="evaluation users (1000)")
    p.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    p.add_argument("--variants", nargs="+", help="only these variants")
    p.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder for the results")
    p.add_argument("--one", nargs=3, metavar=("VARIANT", "SEED", "FILE"), help=argparse.SUPPRESS)
    return p


def main(benchmark: Benchmark, parser: argparse.ArgumentParser | None = None) -> None:
    """Run one (variant, seed) when told by `--one`, else all of them and write the table."""
    args = (parser or arguments(benchmark.title)).parse_args()
    if args.one:
        variant, seed, file = args.one
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        begun = time.monotonic()
        result = benchmark.one(variant, int(seed), args)
        result = {"variant": variant, "seed": int(seed), "seconds": time.monotonic() - begun} | result
        Path(file).write_text(json.dumps(result))
        return
    variants = [v for v in benchmark.variants if not args.variants or v in args.variants]
    if not variants:
        raise SystemExit(f"none of {args.variants} is a variant; choose from {list(benchmark.variants)}")
    begun = time.monotonic()
    jobs = [(v, s) for v in variants for s in args.seeds]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        tasks = {
            pool.submit(_process, benchmark.module, v, s, Path(folder) / f"{i}.json", args.jobs): (v, s)
            for i, (v, s) in enumerate(jobs)
        }
        for task in as_completed(tasks):
            results[tasks[task]] = task.result()
            done = [results[job] for job in jobs if job in results]
            page = _publish(benchmark, args, done, [v for v in variants if any(r["variant"] == v for r in done)], begun)
    print(page)


def _publish(
    benchmark: Benchmark, args: argparse.Namespace, results: list[dict[str, Any]], variants: list[str], begun: float
) -> str:
    """Write NAME.json and NAME.md of the results so far: a run that is cut short leaves what it has."""
    about = {
        "command": " ".join(["python", "-m", benchmark.module, *_told(sys.argv[1:])]),
        "hardware": hardware(args.device),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - begun),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = benchmark.module.rsplit(".", 1)[-1] + f"_{args.prepared.name}"
    page = f"# {benchmark.title}\n\n{table(results, variants, benchmark.columns)}\n\n{benchmark.notes}\n"
    page += f"{benchmark.extra(results)}\nMean over seeds {args.seeds} and 95 % interval (Student's t).\n\n"
    page += "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n"
    for name, text in (("json", json.dumps({"about": about, "results": results}, indent=1) + "\n"), ("md", page)):
        part = args.out / f".{stem}.{name}.part"
        part.write_text(text)
        part.replace(args.out / f"{stem}.{name}")
    return page


def _told(arguments: list[str]) -> list[str]:
    """The arguments as they are typed, without where the results went."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return [shlex.quote(word) for word in arguments[:at] + arguments[at + 2 :]]


def _process(module: str, variant: str, seed: int, file: Path, jobs: int) -> dict[str, Any]:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *sys.argv[1:], "--one", variant, str(seed), str(file)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant}, seed {seed} failed:\n{done.stderr[-4000:]}")
    print(f"{variant}, seed {seed}: done", file=sys.stderr, flush=True)
    return json.loads(file.read_text())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval by Student's t; a half-width of nan with one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def table(results: list[dict[str, Any]], variants: Sequence[str], columns: Sequence[Column]) -> str:
    """Markdown: one row a variant, mean ± half-width over its seeds; a dash where a variant lacks the number."""
    lines = ["| variant | " + " | ".join(c.title for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for variant in variants:
        cells = []
        for c in columns:
            values = [r[c.key] for r in results if r["variant"] == variant and r.get(c.key) is not None]
            mean, half = interval(values) if values else (float("nan"), float("nan"))
            spread = "" if np.isnan(half) else f" ± {half:.{c.digits}f}"
            cells.append(f"{mean:.{c.digits}f}{spread}" if values else "–")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
