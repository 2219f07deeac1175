"""Collects the outcomes of the faults, also from xdist's workers, and writes the table where ONEREC_FAULTS_TABLE says."""

from __future__ import annotations

import os
from pathlib import Path

from fault import PROPERTY, table

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_terminal_summary(terminalreporter) -> None:
    target = os.environ.get("ONEREC_FAULTS_TABLE")
    if not target:
        return
    reports = [r for found in terminalreporter.stats.values() for r in found if hasattr(r, "user_properties")]
    rows = {value["name"]: value for r in reports for key, value in r.user_properties if key == PROPERTY}
    if rows:
        (REPOSITORY / target).write_text(table(list(rows.values())))
        terminalreporter.write_line(f"{len(rows)} faults written to {target}")
