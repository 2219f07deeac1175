"""Runs many (variant, set, seed) trainings on one machine, a process each and several side by side.

Processes on one GPU take turns: two hide each other's gaps, eight only wait for each other. Results are JSON files, one
a training; one that exists already is not trained again, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def run_all(
    wanted: Sequence[tuple[str, str, int]],
    *,
    prepared: Path,
    results: Path,
    device: str,
    jobs: int,
    test: bool,
    epochs: int | None = None,
    seconds: float = math.inf,
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Results of (variant, set, seed) in the order asked. Raises RuntimeError naming the trainings that failed."""
    results.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def one(what: tuple[str, str, int]) -> Path:
        variant, name, seed = what
        file = results / f"{name}_{variant}_{seed}{'_test' if test else ''}.json"
        if not file.exists():
            command = [sys.executable, "-m", "benchmarks.quality.variants", "--prepared", str(prepared / name)]
            command += ["--variant", variant, "--seed", str(seed), "--device", device, "--out", str(file)]
            command += ["--test"] if test else []
            command += ["--epochs", str(epochs)] if epochs else []
            command += ["--seconds", str(seconds)] if seconds < math.inf else []
            with open(file.with_suffix(".log"), "w") as log:
                environment = os.environ | {
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.environ.get("PYTHONPATH", "") or ".",
                }
                subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if file.exists():
            found = json.loads(file.read_text())
            numbers = " ".join(f"{k} {v:.4f}" for k, v in found["validation"].items())
            progress(f"{time.monotonic() - begun:6.0f} s  {name} {variant} {seed}: validation {numbers}")
        return file

    with ThreadPoolExecutor(jobs) as pool:
        files = list(pool.map(one, wanted))
    if failed := [f for f in files if not f.exists()]:
        raise RuntimeError(f"{len(failed)} trainings failed; see {failed[0].with_suffix('.log')}")
    return [json.loads(f.read_text()) for f in files]
