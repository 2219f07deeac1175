"""Many benchmarks on a machine that is held for minutes: one after another or side by side, results kept as they come.

    python -m benchmarks.batch benchmarks/gpu.toml --seconds 560 --out results --only training serving
    python -m benchmarks.batch benchmarks/gpu.toml --list

A plan is a TOML file of `[[run]]` tables: `name`, `group`, `command` (run by bash in the repository), `seconds` (it is
ended after them; 300), `alone` (true: timed, one after another on the first GPU; false: side by side on the last one),
`needs` (files it reads; a run without them is left out, and said so), and `results` (what it writes, as glob patterns).
After every run, and every 20 seconds, the results found so far and all logs are packed into `out/results.tar`: whoever
cuts the machine off loses seconds, not the batch. Nothing starts that could not end in time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
from pathlib import Path

from benchmarks.machine import REPOSITORY

PACK_S, END_S = 20.0, 10.0  # between two archives; kept for the last one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One benchmark of a plan."""

    name: str
    group: str
    command: str
    seconds: float = 300.0
    alone: bool = False
    needs: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [path for path in self.needs if not (REPOSITORY / path).exists()]


def plan(file: Path, only: list[str]) -> list[Run]:
    """The runs of a plan, or those whose name or group is in `only`. Raises ValueError naming what is wrong."""
    try:
        tables = tomllib.loads(file.read_text())["run"]
        runs = [Run(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}) for table in tables]
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: {error}; a plan is [[run]] tables with {_fields()}") from None
    if doubled := {r.name for r in runs if sum(r.name == other.name for other in runs) > 1}:
        raise ValueError(f"{file}: the names {sorted(doubled)} are there twice; logs are named by them")
    if unknown := set(only) - {r.name for r in runs} - {r.group for r in runs}:
        raise ValueError(f"{file} has no run or group {sorted(unknown)}; --list shows them")
    return [r for r in runs if not only or r.name in only or r.group in only]


class Batch:
    """Runs a plan until it is done or `seconds` are over."""

    def __init__(self, out: Path, seconds: float, gpus: int, side_by_side: int) -> None:
        self.out, self.end = out, time.monotonic() + seconds - END_S
        self.gpus, self.places = gpus, threading.Semaphore(side_by_side)
        self.said: dict[str, str] = {}
        self.packing = threading.Lock()

    def __call__(self, runs: list[Run]) -> dict[str, str]:
        """name -> how it ended: done, failed with a status, cut, left out."""
        self.out.mkdir(parents=True, exist_ok=True)
        wanted = []
        for run in runs:
            if gone := run.missing():
                self._say(run, f"left out: {', '.join(gone)} is not there")
            else:
                wanted.append(run)
        alone = [r for r in wanted if r.alone]
        threads = [threading.Thread(target=lambda: [self._run(r, wanted, 0) for r in alone])]
        threads += [
            threading.Thread(target=self._beside, args=(r, wanted, self.gpus - 1)) for r in wanted if not r.alone
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(PACK_S / len(threads))
            self.pack(wanted)
        self.pack(wanted)
        return self.said

    def _beside(self, run: Run, wanted: list[Run], gpu: int) -> None:
        with self.places:
            self._run(run, wanted, gpu)

    def _run(self, run: Run, wanted: list[Run], gpu: int) -> None:
        left = self.end - time.monotonic()
        if left < min(run.seconds, 30.0):
            self._say(run, f"left out: {max(left, 0):.0f} s are left of the batch")
            return
        begun = time.monotonic()
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONUNBUFFERED": "1"}
        with (self.out / f"{run.name}.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-o", "pipefail", "-c", run.command],
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                status = process.wait(min(run.seconds, left))
                ended = "done" if status == 0 else f"failed with status {status}"
            except subprocess.TimeoutExpired:
                ended = "cut"
            finally:  # also what it left behind: nothing shares the device with the next one
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._say(run, f"{ended} after {time.monotonic() - begun:.0f} s")
        self.pack(wanted)

    def _say(self, run: Run, how: str) -> None:
        self.said[run.name] = how
        print(f"{run.name}: {how}", flush=True)

    def pack(self, runs: list[Run]) -> None:
        """All logs and what the runs have written, as out/results.tar; the old one stays until the new is whole."""
        with self.packing:
            found = {p for run in runs for pattern in run.results for p in REPOSITORY.glob(pattern) if p.is_file()}
            part = self.out / "results.tar.part"
            with tarfile.open(part, "w") as archive:
                for path in sorted(found):
                    archive.add(path, path.relative_to(REPOSITORY))
                for path in sorted(self.out.glob("*.log")):
                    archive.add(path, f"logs/{path.name}")
            part.replace(self.out / "results.tar")


def _fields() -> str:
    return ", ".join(f.name for f in dataclasses.fields(Run))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("plan", type=Path)
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runs or groups (all)")
    p.add_argument("--seconds", type=float, default=560.0, help="of the whole batch (560)")
    p.add_argument("--gpus", type=int, default=1, help="of the machine (1)")
    p.add_argument("--side-by-side", type=int, default=4, help="runs that need no quiet, at a time (4)")
    p.add_argument("--out", type=Path, default=Path("build/batch"))
    p.add_argument("--list", action="store_true", help="print the plan and end")
    args = p.parse_args()
    try:
        runs = plan(args.plan, args.only)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        for run in runs:
            how = "alone" if run.alone else "beside"
            print(f"{run.group:<12} {run.name:<28} {run.seconds:>4.0f} s  {how:<7} {run.command}")
        return 0
    ended = Batch(args.out, args.seconds, args.gpus, args.side_by_side)(runs)
    return 0 if all(how.startswith("done") for how in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
