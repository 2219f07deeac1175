"""What the alignment benchmarks share: arguments, processes side by side, and tables with intervals over seeds.

A benchmark is a list of variants, a function `one(variant, seed, arguments) -> dict of numbers` and the columns of its
table. `main` keeps `--jobs` processes, which take one (variant, seed) after the other, seed by seed, and writes
NAME.json and NAME.md anew after each result: a run that is cut short leaves whole seeds. Called again with the same
arguments it goes on behind what NAME.json holds; --seeds, --variants and --jobs may differ.

A prepared folder with `seed-N` folders in it (benchmarks/alignment/worlds.py) gives each seed data of its own.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.machine import REPOSITORY, commit, hardware

HERE = Path(__file__).resolve().parent
ONLY_HOW = ("--out", "--seeds", "--variants", "--jobs")  # arguments that change no result
One = Callable[[str, int, argparse.Namespace], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A number of `one`'s result in the table; `digits` after the point."""

    key: str
    title: str
    digits: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """`module` is its own name for `python -m`; `notes` stands under the table.

    `changes`: what a variant changes in the configuration. A result is made anew when it differs.
    """

    module: str
    title: str
    variants: Sequence[str]
    one: One
    columns: Sequence[Column]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""
    extra: Callable[[list[dict[str, Any]]], str] = lambda results: ""


def arguments(
    description: str,
    *,
    data: str = "--prepared",
    made_by: str = "benchmarks.alignment.prepare",
    steps: int = 120,
    users: int = 1000,
    out: Path = HERE,
) -> argparse.ArgumentParser:
    """The arguments that `main` and all benchmarks need; what differs between alignment and training is a parameter."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument(data, dest="prepared", type=Path, required=True, help=f"folder written by {made_by}")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--steps", type=int, default=steps, help="training steps of a variant (%(default)s)")
    p.add_argument("--users", type=int, default=users, help="evaluation users (%(default)s)")
    p.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    p.add_argument("--variants", nargs="+", help="only these variants")
    p.add_argument("--out", type=Path, default=out, help="folder for the results")
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
    results, code = _kept(benchmark, args), commit()  # workers read the code now, whatever is committed meanwhile
    jobs = [(v, s) for s in args.seeds for v in variants if (v, s) not in results]
    page = _publish(benchmark, args, list(results.values()))
    with ThreadPoolExecutor(args.jobs) as pool:
        free: Queue[Worker] = Queue()
        for _ in range(min(args.jobs, len(jobs))):
            free.put(Worker(benchmark.module, args.jobs))
        tasks = {pool.submit(_ask, free, *job): job for job in jobs}
        for task in as_completed(tasks):
            variant, seed = tasks[task]
            if task.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            results[variant, seed] = task.result() | {"settings": _settings(benchmark, variant), "commit": code}
            page = _publish(benchmark, args, list(results.values()))
        while not free.empty():
            free.get().close()
    print(page)


def folder_of(prepared: Path, seed: int) -> Path:
    """The data of a seed: its own where the folder has one a seed, else the same for all."""
    return own if (own := prepared / f"seed-{seed}").exists() else prepared


def _stem(benchmark: Benchmark, args: argparse.Namespace) -> str:
    return benchmark.module.rsplit(".", 1)[-1] + f"_{args.prepared.name}"


def _settings(benchmark: Benchmark, variant: str) -> str:
    """What must be the same for a result to be kept. Not the code: its commit stands beside the result."""
    return f"{shlex.join(_told(sys.argv[1:], ONLY_HOW))}; {benchmark.changes.get(variant)!r}"


def _kept(benchmark: Benchmark, args: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of an earlier call with the same settings, of variants that still exist."""
    file = args.out / f"{_stem(benchmark, args)}.json"
    found = json.loads(file.read_text())["results"] if file.exists() else []
    return {
        (r["variant"], r["seed"]): r
        for r in found
        if r["variant"] in benchmark.variants and r.get("settings") == _settings(benchmark, r["variant"])
    }


def _publish(benchmark: Benchmark, args: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """Write NAME.json and NAME.md of the results so far: a run that is cut short leaves what it has."""
    results = sorted(results, key=lambda r: (r["seed"], benchmark.variants.index(r["variant"])))
    variants = [v for v in benchmark.variants if any(r["variant"] == v for r in results)]
    facts = args.prepared / "about.json"
    which = ["--seeds", *(str(s) for s in dict.fromkeys(r["seed"] for r in results))]
    which += [] if len(variants) == len(benchmark.variants) else ["--variants", *variants]
    about = {
        "command": shlex.join(["python", "-m", benchmark.module, *_told(sys.argv[1:], ONLY_HOW), *which]),
        "hardware": hardware(args.device),
        "commit": ", ".join(dict.fromkeys(r["commit"] for r in results)) or commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "torch": torch.__version__,
        "seconds, of all processes": round(sum(r["seconds"] for r in results)),
        **(json.loads(facts.read_text()) if facts.exists() else {}),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = _stem(benchmark, args)
    page = f"# {benchmark.title}\n\n{table(results, variants, benchmark.columns)}\n\n"
    page += "".join(f"{part}\n\n" for part in (benchmark.notes, benchmark.extra(results).strip()) if part)
    page += f"{_seeds(results, variants)}\n\n"
    page += "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n"
    for name, text in (("json", json.dumps({"about": about, "results": results}, indent=1) + "\n"), ("md", page)):
        part = args.out / f".{stem}.{name}.part"
        part.write_text(text)
        part.replace(args.out / f"{stem}.{name}")
    return page


def _seeds(results: list[dict[str, Any]], variants: Sequence[str]) -> str:
    """Which seeds stand behind the rows."""
    of = {v: [r["seed"] for r in results if r["variant"] == v] for v in variants}
    most = max(of.values(), key=len, default=[])
    fewer = "; ".join(f"{v}: {seeds}" for v, seeds in of.items() if seeds != most)
    return f"Mean over seeds {most}{f' ({fewer})' if fewer else ''} and 95 % interval (Student's t)."


def _told(arguments: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """The arguments without some options and their values."""
    kept, skip = [], False
    for word in arguments:
        skip = word in left_out if word.startswith("--") else skip
        if not skip:
            kept.append(word)
    return kept


class Worker:
    """A process that answers one (variant, seed) at a time: a line of JSON each way."""

    def __init__(self, module: str, jobs: int) -> None:
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
        environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
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
    try:
        result = worker.ask(variant, seed)
    finally:  # a dead one fails at once; nobody waits for it for ever
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
            own = argparse.Namespace(**vars(args) | {"prepared": folder_of(args.prepared, seed)})
            result = benchmark.one(variant, seed, own)
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
