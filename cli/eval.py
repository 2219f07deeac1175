"""`onerec eval`: a release on a day's evaluation rows, by slice, with intervals over users.

onerec eval production 2022-05-05            onerec eval 2022-05-05-0123456789ab rows.parquet --json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from cli.options import add_workspace, command, workspace
from kfp_components.workspace import Workspace
from releases.channels import CHANNELS, channel_in_use
from releases.manifest import load_release
from releases.stores import open_store

SHOWN = ("recall@10", "recall@50", "recall@100", "ndcg@10")


def add(commands) -> None:
    parser = command(
        commands, "eval", "how well a release ranks a day's unseen positives", "onerec eval production 2022-05-05"
    )
    parser.add_argument("release", help=f"release id, or a channel ({', '.join(CHANNELS)})")
    parser.add_argument(
        "data",
        help="day (YYYY-MM-DD) of the workspace whose evaluation rows to rank (what came after that day), or a Parquet "
        "file of such rows",
    )
    parser.add_argument("--users", type=int, help="a random sample of so many users (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sample and intervals (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    add_workspace(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from models.evaluation.release import evaluate_release

    if args.users is not None and args.users < 1:
        raise ValueError(f"--users is {args.users}; give at least 1, or leave it out for all")
    w = workspace(args)
    store = open_store(w.store, source=w.source)
    release_id = args.release
    if args.release in CHANNELS:
        release_id = channel_in_use(store, args.release).release_id
    folder, manifest = load_release(store, release_id)
    report = evaluate_release(
        release=folder,
        evaluation_set=evaluation_rows(w, args.data),
        training_sets=w.training_sets(manifest.day, bootstrap=True),
        seed=args.seed,
        users=args.users,
        device=args.device,
        progress=(lambda line: None) if args.json else print,
    )
    print(json.dumps(report, indent=1) if args.json else table(report))


def evaluation_rows(w: Workspace, data: str) -> Path:
    """The rows of a day of the workspace, or the file itself. Raises ValueError when it is not there."""
    is_day = re.fullmatch(r"\d{4}-\d{2}-\d{2}", data)
    file = w.partition("evaluation", data) if is_day else Path(data)
    if not file.is_file():
        mend = "run `onerec daily` for that day" if is_day else "give a day, or a file that the features step wrote"
        raise ValueError(f"{file} does not exist; {mend}")
    return file


def table(report: dict) -> str:
    """Text: one line a slice and model; in brackets the 95 % interval of recall@50 over users."""
    lines = [f"release {report['release']}, {report['users']:,} users, {report['legality']:.1%} of places legal", ""]
    head = f"{'slice':<12}  {'model':<12}  {'users':>7}" + "".join(f"  {name:>10}" for name in SHOWN)
    lines.append(f"{head}  95 % of recall@50")
    for row in report["rows"]:
        low, high = row["recall@50_interval"]
        numbers = "".join(f"  {row[name]:>10.4f}" for name in SHOWN)
        lines.append(f"{row['slice']:<12}  {row['model']:<12}  {row['users']:>7,}{numbers}  {low:.4f} to {high:.4f}")
    return "\n".join(lines)
