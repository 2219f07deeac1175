"""`onerec backfill`: make days again, oldest first, beside the live workspace; swap them in when all are good.

onerec backfill --data logs/kuairand-pure --from 2022-05-03 --to 2022-05-05 --dry-run
onerec backfill --undo 2022-05-03_2022-05-05_features
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.airflow_run import prepare
from cli.backfill_plan import ONLY, Plan, make_plan, whole
from cli.daily import simulated, terminations
from cli.options import add_data, command, day, source_of
from cli.scheduler import scheduler
from kfp_components.lock import held
from kfp_components.step import Outcome
from kfp_components.workspace import PARTS, PIPELINES, Workspace

MOST_DAYS = 366
WAIT_HOURS = 20


def add(commands) -> None:
    example = "onerec backfill --from 2022-05-03 --to 2022-05-05 --only features --dry-run"
    parser = command(commands, "backfill", "make several days again, oldest first", example)
    add_data(parser)
    parser.add_argument("--from", dest="first", type=day, help="first day")
    parser.add_argument("--to", dest="last", type=day, help="last day")
    parser.add_argument("--only", default="", choices=[o for o in ONLY if o], help="one part (default: all of a day)")
    parser.add_argument("--rebuild", action="store_true", help="also days that are whole (default: from the first gap)")
    parser.add_argument("--dry-run", action="store_true", help="only print the plan")
    parser.add_argument("--undo", metavar="NAME", help="bring back what a backfill replaced (a folder in .replaced)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stops at the first day that fails, with the live workspace as it was; run again, it goes on where it stopped."""
    root = Path(args.root)
    live = Workspace(root=str(root), source=source_of(args.data, args.source))
    now = dt.datetime.now(dt.UTC)
    if args.undo:
        from datasets.staging import undo

        with held(live.base / ".pipeline.lock", f"onerec backfill --undo {args.undo}"):
            units = undo(live.base, live.base / ".replaced" / Path(args.undo).name, now=now)
        print(f"{len(units)} partition(s) are as they were before {args.undo}")
        return 0
    if not (args.first and args.last):
        raise ValueError("give --from and --to, or --undo NAME")
    days = between(args.first, args.last)
    plan = make_plan(live, days=days, only=args.only, rebuild=args.rebuild)
    name = f"{days[0]}_{days[-1]}_{args.only or 'all'}"
    staging = Workspace(root=str(root.resolve() / ".backfill" / name), source=live.source)
    resumed = staging.base.is_dir()
    print("\n".join(plan.lines()) + (f"\nresumes the staging {staging.root}" if resumed else ""), flush=True)
    if plan.rebuilt and not resumed:
        starts_from_what_is_here(live, plan)
    if args.dry_run or not (plan.rebuilt or resumed):
        return 0
    with held(root / ".backfill.lock", f"onerec backfill {days[0]} to {days[-1]}"), terminations():
        if not resumed:
            prepare_staging(live, staging, plan)
        data = args.data or simulated(root)
        conf = {"root": staging.root, "source": live.source, "data": str(data.resolve()), "seed": args.seed}
        if failed := run_phases(root, staging, plan, conf | {"wait_hours": WAIT_HOURS, "servers": ""}):
            tell(staging, failed, args)
            return 1
        finish(live, staging, plan, name, now)
    return 0


def starts_from_what_is_here(live: Workspace, plan: Plan) -> None:
    """ValueError when the first day would start from a day that is not whole: said with the plan, not hours later."""
    from kfp_components.lineage import features_before, release_before

    if "features" in plan.pipelines:
        features_before(live, plan.rebuilt[0])
    if {"tokenizer", "training"} & set(plan.pipelines):
        release_before(live, plan.rebuilt[0])


def prepare_staging(live: Workspace, staging: Workspace, plan: Plan) -> None:
    """A copy of the workspace (hard links) without the outcomes that are rebuilt, so that an outcome means done."""
    from datasets.staging import stage

    stage(live.base, staging.base)
    for date in plan.rebuilt:
        for step in (step for part in plan.pipelines for p in PARTS[part] for step in PIPELINES[p]):
            shutil.rmtree(staging.step_dir(date, step), ignore_errors=True)


def run_phases(root: Path, staging: Workspace, plan: Plan, conf: dict) -> str:
    """Airflow's own backfill of each DAG, a phase at a time. Returns the day that failed, or ""."""
    if not any(todo(staging, plan, p) for p in plan.pipelines):
        return ""
    home = prepare(root)
    with scheduler(home, root / "airflow" / "backfill.log", until=plan.days[-1]) as airflow:
        for phase in plan.phases():
            left = {f"onerec_{p}": days for p in phase if (days := todo(staging, plan, p))}
            if failed := airflow.backfill(left, conf, lambda text: print(f"  {text}", flush=True)):
                return failed
    return ""


def todo(staging: Workspace, plan: Plan, pipeline: str) -> list[str]:
    """The rebuilt days that a pipeline has not finished in the staging, and all after the first of them."""
    missing = [date for date in plan.rebuilt or plan.days if not whole(staging, date, pipeline)]
    return [date for date in plan.days if missing and date >= missing[0]]


def finish(live: Workspace, staging: Workspace, plan: Plan, name: str, now: dt.datetime) -> None:
    """Check what was made, swap it in, and bring the online store and the channels up to it."""
    from datasets.staging import KEPT_DAYS, swap, units_changed

    problems = [problem for date in plan.rebuilt or plan.days for problem in check(staging, date, plan.pipelines)]
    if problems:
        raise ValueError(f"nothing was swapped: {'; '.join(problems)} (staging: {staging.root})")
    with held(live.base / ".pipeline.lock", f"the swap of backfill {name}"):
        changed = units_changed(live.base, staging.base)
        kept = live.base / ".replaced" / f"{name}_{now:%Y%m%dT%H%M%S}"
        units = swap(live.base, staging.base, changed, kept, now=now)
        if "features" in plan.pipelines:
            fill_online(live, plan.rebuilt or plan.days)
        if "release" in plan.pipelines:
            move_channels(live, (plan.rebuilt or plan.days)[-1])
    shutil.rmtree(staging.root)
    print(f"{len(units)} partition(s) and outcome(s) swapped in; what they replaced is kept {KEPT_DAYS} days in {kept}")
    print(f"to go back: onerec backfill --root {live.root} --source {live.source} --undo {kept.name}")


def check(staging: Workspace, date: str, pipelines: Sequence[str]) -> list[str]:
    """What is wrong with a day in the staging, in words."""
    from kfp_components.lineage import open_store
    from releases.manifest import load_release

    found = [f"{p} of {date} is not whole" for p in pipelines if not whole(staging, date, p)]
    if not found and "features" in pipelines:
        quality = Outcome.read(staging.step_dir(date, "validate")).metrics
        found += [f"{date} fails critical expectations"] if quality["critical_failed"] else []
    if not found and "training" in pipelines:
        load_release(open_store(staging), Outcome.read(staging.step_dir(date, "publish")).metrics["release_id"])
    return found


def fill_online(live: Workspace, days: Sequence[str]) -> None:
    """The online store again for the days; rows that are newer in it stay."""
    from feature_repo.store import materialize

    for date in days:
        start, end = Outcome.read(live.step_dir(date, "pathways")).metrics["interval"]
        materialize(
            features=live.features,
            feature_store=live.feature_store,
            start=dt.datetime.fromisoformat(start),
            end=dt.datetime.fromisoformat(end),
        )


def move_channels(live: Workspace, date: str) -> None:
    """What the gates decided in the staging, on the live channels: forward only, never back to an earlier day."""
    from kfp_components.lineage import open_store
    from kfp_components.promote.step import advance

    decision, store = Outcome.read(live.step_dir(date, "promote")).metrics, open_store(live)
    for channel in ("candidate", *(["production"] if decision["passed"] else [])):
        print(f"{channel} is {advance(store, channel, decision['release_id'], 'backfill')}")


def tell(staging: Workspace, failed: str, args: argparse.Namespace) -> None:
    """The failed day, its error, and the command that goes on from it."""
    events = staging.progress(failed).read_text().splitlines() if staging.progress(failed).is_file() else []
    last: dict[str, str] = next((e for e in map(json.loads, reversed(events)) if e["event"] == "failed"), {})
    where = f" at step {last['step']}: {last['error']}\n  log    {last['log']}" if last else ""
    again = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    print(
        f"\nFAILED day {failed}{where}\n  Nothing live was changed; finished days are kept in {staging.root}\n"
        f"  again  {again}   (after mending the above; it goes on where it stopped)",
        file=sys.stderr,
    )


def between(first: str, last: str) -> list[str]:
    """The days from first to last; ValueError when there are none, or far too many."""
    start, count = dt.date.fromisoformat(first), (dt.date.fromisoformat(last) - dt.date.fromisoformat(first)).days + 1
    if not 1 <= count <= MOST_DAYS:
        raise ValueError(f"--from {first} --to {last} is {count} days; give 1 to {MOST_DAYS}, oldest first")
    return [(start + dt.timedelta(days=i)).isoformat() for i in range(count)]
