"""The harness of the fault matrix: a fault is a function that injects it for real and asserts how it ends.

    @fault(injection="SIGKILL while the rows are written", expected="the old partition is whole; a rerun writes the new")
    def task_killed_mid_write(tmp_path: Path) -> str:
        ...                                # inject, assert; return what was seen in a few words, for the table

    test_it = cases(__name__)              # at the end of a tests/faults/test_*.py: one test a fault of this file

Run all and write the table anew:  ONEREC_FAULTS_TABLE=docs/faults.md python -m pytest tests/faults
conftest.py collects the outcomes (also from xdist's workers) and writes the table; a fault that was not run, or whose
means are absent (skipped with its reason), keeps the row it has. Delete the page first to drop rows of removed faults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.airflow_run import airflow

PROPERTY = "fault"  # the property of a test report that carries a row of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: `run(tmp_path)` injects it and asserts `expected`; `needs()` says what is missing here ("" nothing).

    `area` groups the table: data, airflow, kfp, releases, serving, features, security.
    """

    name: str
    area: str
    injection: str
    expected: str
    run: Callable[[Path], str]
    needs: Callable[[], str]

    def row(self, outcome: str, seen: str) -> dict[str, str]:
        """A row of the table, as text."""
        return {
            "area": self.area,
            "name": self.name,
            "injection": self.injection,
            "expected": self.expected,
            "outcome": outcome,
            "seen": seen,
        }


REGISTERED: dict[str, list[Fault]] = {}  # module -> its faults, in order


def fault(
    *, injection: str, expected: str, area: str = "airflow", needs: Callable[[], str] = lambda: ""
) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Register a function of tmp_path as a fault of its module; its name, without underscores, is the fault's."""

    def register(run: Callable[[Path], str]) -> Callable[[Path], str]:
        name = run.__name__.replace("_", " ")
        found = REGISTERED.setdefault(run.__module__, [])
        assert name not in [f.name for f in found], f"two faults are named {name}"
        found.append(Fault(name=name, area=area, injection=injection, expected=expected, run=run, needs=needs))
        return run

    return register


def no_airflow() -> str:
    """Why the real Airflow cannot run here; empty where it can."""
    try:
        airflow()
    except ValueError as error:
        return str(error)
    return ""


def cases(module: str):
    """One parametrized test over the faults of a module."""

    @pytest.mark.parametrize("case", REGISTERED[module], ids=lambda f: f.name.replace(" ", "-"))
    def test_fault(case: Fault, tmp_path: Path, record_property) -> None:
        if missing := case.needs():
            record_property(PROPERTY, case.row("skipped", missing))
            pytest.skip(missing)
        try:
            seen = case.run(tmp_path)
        except BaseException as error:
            record_property(PROPERTY, case.row("FAILED", f"{type(error).__name__}"))
            raise
        assert isinstance(seen, str) and seen, "a fault returns what was seen, for the table"
        record_property(PROPERTY, case.row("as expected", seen))

    return test_fault


COLUMNS = ("name", "injection", "expected", "outcome", "seen")


def read_table(page: str) -> list[dict[str, str]]:
    """The rows of a page that `table` wrote."""
    rows, area = [], ""
    for line in page.splitlines():
        area = line.removeprefix("## ") if line.startswith("## ") else area
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("| ") and cells[0] != "fault":
            rows.append({"area": area, **dict(zip(COLUMNS, cells, strict=True))})
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """The rows as the Markdown page docs/faults.md."""
    head = (
        "# Fault matrix\n\nEvery fault is injected for real by `tests/faults`, which wrote this page:\n\n"
        "    ONEREC_FAULTS_TABLE=docs/faults.md python -m pytest tests/faults\n"
    )
    parts = [head]
    for area in sorted({row["area"] for row in rows}):
        parts.append(f"\n## {area}\n\n| fault | injected by | expected | outcome | seen |\n|---|---|---|---|---|\n")
        for row in sorted((r for r in rows if r["area"] == area), key=lambda r: r["name"]):
            cells = [" ".join(row[k].replace("|", "/").split()) for k in COLUMNS]
            parts.append("| " + " | ".join(cells) + " |\n")
    ok = sum(row["outcome"] == "as expected" for row in rows)
    parts.append(f"\n{ok} of {len(rows)} faults ended as expected.\n")
    return "".join(parts)
