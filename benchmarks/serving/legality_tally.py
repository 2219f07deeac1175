"""What all runs of `legality.py` counted, in a file and as a page.

tally = Tally(Path("legality.json")); run = tally.begin(day=..., commit=...); run["counts"] = {...}; tally.save()
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.serving.world import header

BEAMS = (16, 24)  # of the requests
FAULTS = ("failed", "illegal", "seen", "excluded", "blocked", "muted author", "too old", "duplicates", "wrong release")


class Tally:
    """What all runs counted, in a file. A killed run keeps what it had counted when it was saved last."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []

    def begin(self, **about: Any) -> dict[str, Any]:
        """A new run with a seed that none had before."""
        self.runs.append({"seed": len(self.runs), **about, "seconds": 0.0, "counts": {}})
        return self.runs[-1]

    @property
    def counts(self) -> Counter[str]:
        return sum((Counter(run["counts"]) for run in self.runs), Counter())

    def save(self) -> None:
        staged = self.file.with_suffix(".part")
        staged.write_text(json.dumps(self.runs, indent=1, sort_keys=True) + "\n")
        staged.replace(self.file)

    def table(self, command: str) -> str:
        counts = self.counts
        runs = "\n".join(
            f"| {run['seed']} | {run['day']} | {run['commit']} | {run['release']} | {run['program']} |"
            f" {run['items']:,} | {run['users']:,} | {run['counts'].get('requests', 0):,} | {run['seconds']:.0f} |"
            for run in self.runs
        )
        rows = "\n".join(f"| {name} | {counts[name]:,} |" for name in FAULTS)
        return f"""{header("Legality of what is returned", command)}
{counts["requests"]:,} requests with {counts["items"]:,} items; beams {", ".join(map(str, BEAMS))}.
{counts["cold_start"]:,} answers were cold starts; {counts["short"]:,} held fewer items than asked for, by
their filters.

| items (or answers) that were | count |
|---|---|
{rows}

| run (seed) | day | commit | release | program | items in the catalogue | users with features | requests | seconds |
|---|---|---|---|---|---|---|---|---|
{runs}
"""
