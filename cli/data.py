"""`onerec data`: check a folder of logs before anything is built on it, and begin an adapter for a new layout.

onerec data check logs/kuairand-pure
onerec data scaffold-adapter shop
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import tempfile
from pathlib import Path
from typing import Any

from cli.options import command, day


def add(commands) -> None:
    parser = command(commands, "data", "check logs, write adapters", "onerec data check logs/kuairand-pure")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = command(
        actions,
        "check",
        "check a folder of logs: status 1 if something critical is wrong, 0 with warnings",
        "onerec data check logs/kuairand-pure --day 2022-05-05",
    )
    check.add_argument("folder", type=Path, help="contract Parquet, a lake, or any known layout of logs")
    check.add_argument("--day", type=day, help="check this log day only (default: all)")
    check.add_argument("--json", action="store_true", help="print the result as JSON, every check of it")
    check.add_argument("--docs", type=Path, help="folder to write results.json and the Data Docs into")
    check.set_defaults(run=run_check)
    scaffold = command(
        actions,
        "scaffold-adapter",
        "write a first adapter for a new layout, and its test",
        "onerec data scaffold-adapter shop",
    )
    scaffold.add_argument("name", help="of the layout: lower case letters, digits and _")
    scaffold.add_argument("--into", type=Path, default=Path(), help="the repository (default: this folder)")
    scaffold.set_defaults(run=run_scaffold)


def run_check(args: argparse.Namespace) -> int:
    from data_quality.folder import check_folder

    wanted = dt.date.fromisoformat(args.day) if args.day else None
    with tempfile.TemporaryDirectory(prefix="onerec-check-") as scratch:
        result = check_folder(args.folder, day=wanted, out=args.docs or Path(scratch), docs=args.docs is not None)
    if args.json:
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        print("\n".join(_lines(args.folder, result)))
        if args.docs:
            print(f"every result: {args.docs / 'docs' / 'index.html'}")
    return 1 if result["critical_failed"] else 0


def run_scaffold(args: argparse.Namespace) -> None:
    from datasets.adapters.scaffold import scaffold

    adapter, test = scaffold(args.name, args.into)
    print(f"wrote {adapter}\nwrote {test}")
    print("change both to your layout and add the class to ADAPTERS in datasets/adapters/__init__.py")


def _lines(folder: Path, result: dict[str, Any]) -> list[str]:
    """What is wrong, critical first: where, the rule, how many rows, an example; then the sum."""
    failed = [r for r in result["results"] if not r["success"]]
    lines = []
    for entry in sorted(failed, key=lambda r: r["severity"]):
        day = f"dt={entry['day']}" if entry["day"] else ""
        where = " ".join(filter(None, [entry["table"], day, entry["column"]]))
        lines += [f"{entry['severity']:8}  {where}", f"          broken: {entry['rule']}{_how_much(entry)}"]
        for row in entry["example"][:1]:
            lines.append("          example: " + ", ".join(f"{name}={value}" for name, value in row.items()))
    days = result["days"]
    span = f" on {len(days)} day{'s' if len(days) > 1 else ''}, {days[0]} to {days[-1]}" if days else ""
    lines.append(
        f"{folder}: {len(result['results'])} checks{span}: "
        f"{result['critical_failed']} critical, {result['warning_failed']} warning"
    )
    return lines


def _how_much(entry: dict[str, Any]) -> str:
    if entry["unexpected_count"]:
        unit = {"schema": "column", "intake": "partition"}.get(entry["table"], "row")
        return f": {entry['unexpected_count']:,} {unit}{'s' if entry['unexpected_count'] > 1 else ''}"
    if not entry["expected"]:
        return f": {entry['observed']}"
    given = {name: value for name, value in entry["expected"].items() if value is not None}
    limits = [f"{name.removesuffix('_value')} {value}" for name, value in given.items()]
    return f": observed {entry['observed']}, expected {', '.join(limits)}"
