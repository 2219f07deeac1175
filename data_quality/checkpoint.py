"""The checkpoint: run every suite over the days of a lake, write results and Data Docs, and stop on critical failures.

    result = validate(lake=Path("lake"), day="2022-05-05", days=["2022-05-04", "2022-05-05"], out=Path("quality"))
    require(result)
    result = validate_pathways(lake=Path("lake"), features=Path("features"), day="2022-05-05", tables=[...], out=...)

Leaves `results.json` (one entry an expectation, with example rows) and `docs/index.html`, the Data Docs. Failures are
in the result, not raised. DuckDB measures (`data_quality.rules`), within MEMORY_MIB, spilling beside the results.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import pandas as pd

from data_quality import impressions, intake, items, users
from data_quality.expectations import Check, run_checks, schema_check, sentence
from data_quality.pathways import Before, PathwayTable
from data_quality.rules import Rule
from data_quality.tables import CONTRACT, TRAILING_DAYS, Labels, Tables, lake_tables, scan, schema_frame
from datasets.cleaning import day_bounds
from datasets.errors import DataError
from datasets.partitions import PART, partition_days, partition_path, read_manifest

MEMORY_MIB = 2048
INDEX = {"impressions": ("user_id", "item_id", "event_time"), "items": ("item_id",), "users": ("user_id",)}


def validate(
    *, lake: Path, day: str, days: list[str], out: Path, progress: Callable[[str], None] = print, docs: bool = True
) -> dict[str, Any]:
    """Check the impressions of `days` and the items and users of `day`.

    A table whose columns are not the contract's is not looked at further. Raises DataError if a partition is missing.
    """
    last = date.fromisoformat(day)
    wanted = [date.fromisoformat(d) for d in days]
    for d in wanted:
        read_manifest(partition_path(lake / "impressions", d))
    return check_tables(lake_tables(lake, last), wanted, out, progress=progress, docs=docs)


def check_tables(
    tables: Tables, days: Sequence[date], out: Path, *, progress: Callable[[str], None] = print, docs: bool = True
) -> dict[str, Any]:
    """The suites of impressions, items, users, their columns and what the ingest counted, wherever they lie."""
    partitions = [("impressions", d) for d in days] + [("items", tables.last), ("users", tables.last)]
    frames = [
        schema_frame(f"{table}/dt={d}", tables.files(table, d), CONTRACT[table], tables.strict, table == "users")
        for table, d in partitions
    ]
    broken = [bool((frame["type"] != frame["contract_type"]).any()) for frame in frames]
    whole = [place for place, bad in zip(partitions, broken, strict=True) if not bad]
    last = str(tables.last)
    checks = [schema_check(last, pd.concat(frames, ignore_index=True))]
    if tables.manifests:
        frame = intake.intake_frame({f"{table}/dt={d}": tables.manifests[f"{table}/dt={d}"] for table, d in partitions})
        checks.append(Check(table="intake", day=last, frame=frame, expectations=intake.intake_suite()))
    with _duckdb(out) as con:
        labels = Labels(con, tables)
        # An impression is judged against the items and users; without them, only the schema check speaks.
        entities = {table for table, _ in whole} >= {"items", "users"}
        for table, d in whole:
            if table == "impressions" and not entities:
                continue
            rules = _rules(con, tables, labels, table, d)
            checks.append(Check.of(con, table, str(d), tables.query(table, d), rules, INDEX[table]))
        return _finish(con, checks, last, out, progress, docs)


def validate_pathways(
    *,
    lake: Path,
    features: Path,
    day: str,
    tables: Sequence[PathwayTable],
    out: Path,
    progress: Callable[[str], None] = print,
    docs: bool = True,
) -> dict[str, Any]:
    """Check the partition of a day of each pathway table below `features`. DataError if one is missing."""
    d, lists = date.fromisoformat(day), lake_tables(lake, date.fromisoformat(day))
    end = pd.Timestamp(day_bounds(d, lists.zone)[1], tz="UTC").to_pydatetime()
    checks, frames = [], []
    with _duckdb(out) as con:
        for table in tables:
            path = partition_path(features / table.name, d)
            read_manifest(path)
            files = [path / PART]
            frame = schema_frame(f"{table.name}/dt={day}", files, table.schema, True)
            frames.append(frame)
            if (frame["type"] != frame["contract_type"]).any():
                continue
            total = 0.0
            if table.items:
                total = con.execute(f"SELECT coalesce(sum(len({table.items})), 0) FROM {scan(files)}").fetchall()[0][0]
            rules = table.suite(
                _before(con, features, table, d),
                impressions=lists.impressions[d],
                items=lists.items,
                end=end,
                total=total,
            )
            query = table.query(files, lists.users, end)
            checks.append(Check.of(con, table.name, day, query, rules, ("user_id", "event_timestamp")))
        checks.insert(0, schema_check(day, pd.concat(frames, ignore_index=True)))
        return _finish(con, checks, day, out, progress, docs)


def require(result: dict[str, Any]) -> None:
    """Raise ValueError naming each critical failure of a result of `validate`."""
    failed = [r for r in result["results"] if r["severity"] == "critical" and not r["success"]]
    if failed:
        lines = "\n  ".join(sentence(r) for r in failed)
        raise ValueError(
            f"data quality: {len(failed)} critical expectation(s) failed:\n  {lines}\n"
            "Mend the source and run the day again from its ingest; results.json has every result"
        )


def _rules(con: duckdb.DuckDBPyConnection, tables: Tables, labels: Labels, table: str, day: date) -> list[Rule]:
    if table == "impressions":
        rules = impressions.suite(labels.before(day))
        return rules if tables.strict else [*rules, impressions.copies(scan(tables.impressions[day]))]
    if table == "users":
        names = [entry[0] for entry in con.execute(f"DESCRIBE SELECT * FROM {scan(tables.users)}").fetchall()]
        features = [name for name in names if name != "user_id"]
        rows = (
            con.execute(f"SELECT count(*) FROM {scan(tables.users_before)}").fetchall() if tables.users_before else []
        )
        return users.suite(features, rows[0][0] if rows else None)
    if not tables.items_before:
        return items.suite(None)
    query = f"SELECT count(*), count(content_embedding) / greatest(count(*), 1) FROM {scan(tables.items_before)}"
    try:
        return items.suite(con.execute(query).fetchall()[0])
    except duckdb.Error as error:
        raise DataError(f"{tables.items_before[0]} cannot be read ({error}): ingest that day again") from None


def _before(con: duckdb.DuckDBPyConnection, features: Path, table: PathwayTable, day: date) -> Before | None:
    days = [d for d in partition_days(features / table.name) if d < day][-TRAILING_DAYS:]
    if not days:
        return None
    rows = median(read_manifest(partition_path(features / table.name, d))["rows"] for d in days)
    newest = scan([partition_path(features / table.name, days[-1]) / PART])
    length = con.execute(f"SELECT coalesce(avg(len({table.columns[0]})), 0) FROM {newest}").fetchall()[0][0]
    return Before(rows=rows, length=length)


def _finish(
    con: duckdb.DuckDBPyConnection,
    checks: list[Check],
    day: str,
    out: Path,
    progress: Callable[[str], None],
    docs: bool,
) -> dict[str, Any]:
    results = run_checks(con, checks, day, out / "docs" if docs else None)
    failed = [r for r in results if not r["success"]]
    result = {
        "critical_failed": sum(r["severity"] == "critical" for r in failed),
        "warning_failed": sum(r["severity"] == "warning" for r in failed),
        "results": results,
    }
    (out / "results.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for r in failed:
        progress(f"{r['severity']}: {sentence(r)}")
    progress(
        f"{len(results)} expectations, {result['critical_failed']} critical and {result['warning_failed']} warnings"
    )
    return result


@contextmanager
def _duckdb(out: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".spill-*"):  # a killed run's: one process writes a folder of results
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=out) as spill:
        config: dict[str, Any] = {"memory_limit": f"{MEMORY_MIB}MiB", "temp_directory": spill}
        with duckdb.connect(config=config) as con:
            con.execute("SET TimeZone = 'UTC'")
            con.execute("SET enable_progress_bar = false")
            yield con
