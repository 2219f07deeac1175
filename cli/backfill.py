"""`onerec backfill`: run several days in order, oldest first, each from the one before it.

onerec backfill --data logs/kuairand-pure --from 2022-05-03 --to 2022-05-05
"""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path

from cli.daily import run_day, simulated, terminations
from cli.options import add_data, command, day, source_of
from kfp_components.lock import held

MOST_DAYS = 366


def add(commands) -> None:
    parser = command(
        commands, "backfill", "run several days, oldest first", "onerec backfill --from 2022-05-03 --to 2022-05-05"
    )
    add_data(parser)
    parser.add_argument("--from", dest="first", type=day, required=True, help="first day")
    parser.add_argument("--to", dest="last", type=day, required=True, help="last day")
    parser.add_argument("--dry-run", action="store_true", help="only print the days")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stops at the first day that fails; run again, finished days are reused. Channels never move back."""
    days = between(args.first, args.last)
    print(f"{len(days)} day(s): {', '.join(days)}")
    if args.dry_run:
        return 0
    root = Path(args.root)
    with held(root / ".daily.lock", f"onerec backfill {days[0]} to {days[-1]}"), terminations():
        data = args.data or simulated(root)
        for date in days:
            if code := run_day(
                root=root, source=source_of(args.data, args.source), data=data, date=date, seed=args.seed
            ):
                return code
    return 0


def between(first: str, last: str) -> list[str]:
    """The days from first to last; ValueError when there are none, or far too many."""
    start, count = dt.date.fromisoformat(first), (dt.date.fromisoformat(last) - dt.date.fromisoformat(first)).days + 1
    if not 1 <= count <= MOST_DAYS:
        raise ValueError(f"--from {first} --to {last} is {count} days; give 1 to {MOST_DAYS}, oldest first")
    return [(start + dt.timedelta(days=i)).isoformat() for i in range(count)]
