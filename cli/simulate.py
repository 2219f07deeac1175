"""`onerec simulate`: write simulated logs, with the truth behind them, into a folder that `onerec daily` reads.

onerec simulate logs/small --days 5 --users 300 --items 200
"""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path

from cli.daily import SIMULATED_END, SIMULATED_SEED
from cli.options import command, day


def add(commands) -> None:
    parser = command(
        commands, "simulate", "write simulated logs", "onerec simulate logs/small --days 5 --users 300 --items 200"
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--end", type=day, default=SIMULATED_END.isoformat(), help="last day (default: %(default)s)")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--impressions", type=int, default=60_000, help="in all, about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SIMULATED_SEED)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from datasets.simulator import simulate

    simulate(
        args.out,
        days=args.days,
        end=dt.date.fromisoformat(args.end),
        users=args.users,
        items=args.items,
        impressions=args.impressions,
        seed=args.seed,
    )
    print(f"simulated logs in {args.out}; run a day on them: onerec daily --data {args.out}")
