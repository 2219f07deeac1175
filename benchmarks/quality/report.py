"""Markdown of the tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import commit


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def footer(results: Sequence[dict[str, Any]], module: str) -> str:
    """Hardware, command, commit and date."""
    devices = ", ".join(sorted({r["device"] for r in results})) or "CPU"
    asked = " ".join(
        Path(a).name if "/" in a else a for a in sys.argv[1:]
    )  # folders by name: whose disk does not matter
    when = datetime.now(UTC).date().isoformat()
    return f"Device: {devices}. Commit {commit()}, {when}. Command: `python -m benchmarks.quality.{module} {asked}`\n"
