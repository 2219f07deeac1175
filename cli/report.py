"""`onerec report`: write the page of a day again from what its steps left, also when the day stopped half-way.

onerec report 2022-05-05
"""

from __future__ import annotations

import argparse

from cli.options import add_workspace, command, day, workspace
from cli.summary import shown


def add(commands) -> None:
    parser = command(commands, "report", "the report of a day, also of one that stopped", "onerec report 2022-05-05")
    parser.add_argument("day", type=day, help="the day, as YYYY-MM-DD")
    add_workspace(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from kfp_components.report.collect import collect
    from kfp_components.report.page import write_report

    w = workspace(args)
    if not (w.base / "days" / args.day).is_dir():
        raise ValueError(f"day {args.day} of {w.source} has not run; run it: onerec daily --date {args.day}")
    report = collect(w, args.day)
    write_report(report, w.run_dir(args.day))
    verdict = report["verdict"]
    print(f"{args.day} of {w.source}: {verdict['headline']}")
    for line in verdict["reasons"]:
        print(f"  {line}")
    print(shown(w.run_dir(args.day) / "report.html"))
