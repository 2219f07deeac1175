"""The suites on a folder of logs, before anything is built on them: contract Parquet, a lake, or any known raw layout.

    result = check_folder(Path("logs/kuairand-pure"), out=Path("checked"))

Contract Parquet is judged as it came. A raw layout goes through the ingest into a temporary lake first, so that what
the ingest drops or sets aside is counted and shown. A source that cannot be read at all is a critical result as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from data_quality.checkpoint import check_tables
from data_quality.expectations import EXAMPLES, plain
from data_quality.tables import Tables, folder_tables, lake_tables, scan
from datasets.adapters import detect
from datasets.adapters.base import Adapter
from datasets.adapters.contract_parquet import ContractParquet
from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.lake import QUARANTINE


def quiet(text: str) -> None:
    """Takes progress and says nothing."""


def check_folder(
    folder: Path,
    *,
    out: Path,
    day: date | None = None,
    progress: Callable[[str], None] = quiet,
    docs: bool = False,
) -> dict[str, Any]:
    """The result of `checkpoint.check_tables`, with the `layout` and the `days` that were looked at.

    day: check this log day only; else all. A raw layout is ingested beside `out`, which needs its size on disk.
    Nothing is raised for bad data, not even for a folder in no known layout.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        if ContractParquet.matches(folder):
            return _check("contract-parquet", folder_tables(folder), day, out, progress, docs)
        adapter = detect(folder)
        with tempfile.TemporaryDirectory(prefix=".check-", dir=out) as scratch, duckdb.connect() as con:
            lake = Path(scratch) / "lake"
            last = day or max(_days(con, adapter))
            ingest(source=folder, day=last, lake=lake, bootstrap=day is None, progress=progress, adapter=adapter)
            result = _check(adapter.name, lake_tables(lake, last), day, out, progress, docs)
            _show_quarantined(con, lake, result)
            return result
    except DataError as error:
        return _unreadable(folder, str(error))
    except (duckdb.Error, OSError) as error:
        return _unreadable(folder, f"{folder} cannot be read: {str(error).splitlines()[0]}")


def _days(con: duckdb.DuckDBPyConnection, adapter: Adapter) -> list[date]:
    try:
        days = adapter.days(con)
    except duckdb.Error:
        adapter.explain(con)
        raise
    if not days:
        raise DataError(f"{adapter.source} has no log rows at all: copy the log again")
    return days


def _check(
    layout: str, tables: Tables, day: date | None, out: Path, progress: Callable[[str], None], docs: bool
) -> dict[str, Any]:
    known = sorted(d for d in tables.impressions if d <= tables.last)
    if day is not None and day not in known:
        raise DataError(f"no impressions of {day}; there are days from {known[0]} to {known[-1]}: ask for one of these")
    days = [day] if day else known
    result = check_tables(tables, days, out, progress=progress, docs=docs)
    return {"layout": layout, "days": [str(d) for d in days], **result}


def _show_quarantined(con: duckdb.DuckDBPyConnection, lake: Path, result: dict[str, Any]) -> None:
    """Replace the shares that the intake's failures show by rows that the ingest set aside, with the reason."""
    for entry in result["results"]:
        if entry["table"] == "intake" and entry["column"] == "quarantined" and not entry["success"]:
            files = [lake / row["partition"] / QUARANTINE for row in entry["example"]]
            found = con.execute(f"SELECT * FROM {scan(files)} LIMIT {EXAMPLES}")
            names = [column[0] for column in found.description]
            entry["example"] = [plain(dict(zip(names, row, strict=True))) for row in found.fetchall()]


def _unreadable(folder: Path, message: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "table": "source",
        "day": "",
        "rule": "the folder can be read",
        "expectation": "read",
        "column": None,
        "expected": {},
        "severity": "critical",
        "success": False,
        "observed": message,
        "unexpected_count": None,
        "example": [],
    }
    return {"layout": None, "days": [], "critical_failed": 1, "warning_failed": 0, "results": [entry]}
