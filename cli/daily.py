"""`onerec daily`: run one day through Airflow and say what came of it.

onerec daily --data logs/kuairand-pure --date 2022-05-05
"""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.airflow_run import day_command, prepare, start, tree_memory
from cli.follow import Failure, Follower, clock
from cli.options import SIMULATED, add_data, command, day, source_of
from cli.summary import print_summary, shown
from kfp_components.lock import held
from kfp_components.workspace import STEPS, TRAFFIC, Workspace

SIMULATED_END, SIMULATED_SEED = dt.date(2026, 1, 8), 7
POLL_S = 0.2


def add(commands) -> None:
    parser = command(
        commands, "daily", "run one day: logs to a served release", "onerec daily --data logs --date 2022-05-05"
    )
    add_data(parser)
    parser.add_argument("--date", type=day, help="the day (default: the last but one of the logs)")
    parser.add_argument("--from", dest="fresh_from", default="", choices=STEPS, metavar="STEP",
                        help=f"run again from this step on, reuse nothing: {', '.join(STEPS)}")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One day. ValueError for what the user can mend before anything has run; status 1 when a step fails."""
    root, source = Path(args.root), source_of(args.data, args.source)
    with held(root / ".daily.lock", f"onerec daily {args.date or ''}".strip()), terminations():
        data = args.data or simulated(root)
        date = args.date or default_day(data)
        return run_day(root=root, source=source, data=data, date=date, seed=args.seed, fresh_from=args.fresh_from)


def run_day(*, root: Path, source: str, data: Path, date: str, seed: int, fresh_from: str = "") -> int:
    """Run the DAGs of a day, follow them, and print the outcome. The caller holds the lock."""
    if not data.is_dir():
        raise ValueError(f"{data} is no folder; give --data <folder with logs in a known layout>")
    workspace = Workspace(root=str(root), source=source)
    home = prepare(root)
    conf: dict[str, str | int] = {"data": str(data.resolve()), "root": str(root.resolve()), "source": source}
    conf |= {"seed": seed, "fresh_from": fresh_from, "wait_hours": 0}  # what is missing is told at once
    log = workspace.run_dir(date) / "logs" / "airflow.log"
    print(f"day {date} of {source}, seed {seed}; logs in {log.parent}", flush=True)
    follower, begun, peak = Follower(workspace.progress(date)), time.monotonic(), 0
    with start(home, day_command(date, conf), log) as process:
        sampled = 0.0
        while process.poll() is None:
            follower.poll()
            if time.monotonic() - sampled > 1:
                sampled, peak = time.monotonic(), max(peak, tree_memory(process.pid))
            time.sleep(POLL_S)
        follower.poll()
    failure = follower.failure
    if failure is None and (process.returncode or set(STEPS) - set(TRAFFIC) - set(follower.finished)):
        failure = follower.cut_off(log)
    took = f"{clock(time.monotonic() - begun).strip()} min, {peak / 2**20:,.0f} MiB at most over all processes"
    if failure is not None:
        print_failure(failure, again(root=root, source=source, data=data, date=date, seed=seed, step=failure.step))
        print(f"  report {unfinished_report(workspace, date)}", file=sys.stderr)
        print(f"took {took}", file=sys.stderr)
        return 1
    same = all(how == "reused" for how in follower.finished.values())
    print("every step was reused: nothing has changed since the day ran" if same else f"took {took}")
    print_summary(workspace, date)
    return 0


def print_failure(failure: Failure, command: str) -> None:
    """What a person needs at 3 a.m.: the step, its error, its log, the command."""
    print(
        f"\nFAILED at step {failure.step}: {failure.error}\n"
        f"  log    {failure.log}\n"
        f"  again  {command}" + ("   (after mending the above)" if failure.user else ""),
        file=sys.stderr,
    )


def unfinished_report(workspace: Workspace, date: str) -> str:
    """Write the page of a day that stopped: what was reached, and what is missing and why. Returns its place."""
    from kfp_components.report.collect import collect
    from kfp_components.report.page import write_report

    write_report(collect(workspace, date), workspace.run_dir(date))
    return shown(workspace.run_dir(date) / "report.html")


def again(*, root: Path, source: str, data: Path, date: str, seed: int, step: str) -> str:
    """The command that runs the day again from a step."""
    day_of = ["--data", str(data), "--date", date, "--root", str(root), "--source", source, "--seed", str(seed)]
    return shlex.join([sys.argv[0], "daily", *day_of, "--from", step])


def simulated(root: Path) -> Path:
    """The folder of simulated logs below the workspace; written once, the same on every machine."""
    out = root / SIMULATED / "logs"
    if not out.is_dir():
        from datasets.simulator import simulate

        print(f"simulate      logs of a made-up service into {out} (give --data for real ones)", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        simulate(out, end=SIMULATED_END, seed=SIMULATED_SEED, progress=lambda text: print(f"simulate      {text}"))
    return out


def default_day(data: Path) -> str:
    """The last but one day of the logs: the day after it is there to evaluate on."""
    import duckdb

    from datasets.adapters import detect

    with duckdb.connect() as con:
        days = detect(data).days(con)
    if not days:
        raise ValueError(f"{data} has no log day; give --data <folder with logs>")
    return sorted(days)[-2 if len(days) > 1 else -1].isoformat()


@contextmanager
def terminations() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C does, so that the process tree below is ended too.

    SIGINT is set as well: a command started in the background of a shell ignores it otherwise.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
