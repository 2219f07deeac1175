"""Collects the outcomes of the faults, also from xdist's workers, and writes the table where ONEREC_FAULTS_TABLE says."""

from __future__ import annotations

import os
from pathlib import Path

from fault import PROPERTY, read_table, table

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_terminal_summary(terminalreporter) -> None:
    target = os.environ.get("ONEREC_FAULTS_TABLE")
    if not target:
        return
    reports = [r for found in terminalreporter.stats.values() for r in found if hasattr(r, "user_properties")]
    found = [v for r in reports if r.when == "call" or r.skipped for key, v in r.user_properties if key == PROPERTY]
    page = REPOSITORY / target
    rows = {(r["area"], r["name"]): r for r in (read_table(page.read_text()) if page.is_file() else [])}
    for row in found:  # what was not run, or could not be, keeps the row it has
        if row["outcome"] != "skipped" or (row["area"], row["name"]) not in rows:
            rows[row["area"], row["name"]] = row
    if found:
        page.write_text(table(list(rows.values())))
        terminalreporter.write_line(f"{len(found)} of {len(rows)} faults written to {target}")
