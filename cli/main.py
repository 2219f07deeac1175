"""The `onerec` command.

onerec daily            onerec release list            onerec recommend 42
"""

from __future__ import annotations

import argparse
import os
import sys

from cli import (
    backfill,
    daily,
    data,
    eval,
    features,
    forget,
    housekeeping,
    recommend,
    release,
    report,
    scaffold,
    scaling,
    simulate,
)

GROUPS = (
    *(daily, backfill, release, recommend, features, report, simulate, data, scaling, eval),
    *(forget, housekeeping, scaffold),
)


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors a user can mend are one line on stderr and status 1 (2 for wrong arguments)."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ConnectionError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="onerec",
        description="One day of OneRec, its releases and its recommendations.",
        epilog="example: onerec daily --data logs/kuairand-pure --date 2022-05-05",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in GROUPS:
        group.add(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
