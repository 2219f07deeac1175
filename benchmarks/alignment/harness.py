"""What the alignment benchmarks share: arguments, processes side by side, and tables with intervals over seeds.

A benchmark is a list of variants, a function `one(variant, seed, arguments) -> dict of numbers` and the columns of its
table. `main` keeps `--jobs` processes, which take one (variant, seed) after the other, seed by seed, and writes
NAME.json and NAME.md anew after each result: a run that is cut short leaves whole seeds.
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
from queue import Queue
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
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return p


def main(benchmark: Benchmark, parser: argparse.ArgumentParser | None = None) -> None:
    """As a worker, answer one (variant, seed) after the other; else run all of them and write the table."""
    args = (parser or arguments(benchmark.title)).parse_args()
    if args.worker:
        _work(benchmark, args)
        return
    variants = [v for v in benchmark.variants if not args.variants or v in args.variants]
    if not variants:
        raise SystemExit(f"none of {args.variants} is a variant; choose from {list(benchmark.variants)}")
    begun = time.monotonic()
    jobs = [(v, s) for s in args.seeds for v in variants]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    page = ""
    with ThreadPoolExecutor(args.jobs) as pool:
        free: Queue[Worker] = Queue()
        for _ in range(min(args.jobs, len(jobs))):
            free.put(Worker(benchmark.module, args.jobs))
        tasks = {pool.submit(_ask, free, *job): job for job in jobs}
        for task in as_completed(tasks):
            results[tasks[task]] = task.result()
            done = [results[job] for job in jobs if job in results]
            page = _publish(benchmark, args, done, [v for v in variants if any(r["variant"] == v for r in done)], begun)
        while not free.empty():
            free.get().close()
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


class Worker:
    """A process that answers one (variant, seed) at a time: a line of JSON each way."""

    def __init__(self, module: str, jobs: int) -> None:
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "OMP_WAIT_POLICY": "PASSIVE"}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *sys.argv[1:], "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=os.environ | environment,
        )  # fmt: skip

    def ask(self, variant: str, seed: int) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([variant, seed]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise SystemExit(f"{variant}, seed {seed} failed:\n{self._errors.read()[-4000:]}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _ask(free: Queue[Worker], variant: str, seed: int) -> dict[str, Any]:
    worker = free.get()
    result = worker.ask(variant, seed)
    free.put(worker)
    print(f"{variant}, seed {seed}: {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


def _work(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """The worker's side: until its input ends."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever else is printed is no answer
        for line in sys.stdin:
            variant, seed = json.loads(line)
            begun = time.monotonic()
            result = benchmark.one(variant, seed, args)
            result = {"variant": variant, "seed": seed, "seconds": time.monotonic() - begun} | result
            answers.write(json.dumps(result) + "\n")
            answers.flush()
            if args.device.startswith("cuda"):
                torch.cuda.empty_cache()  # other processes share the card


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
