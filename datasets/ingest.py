"""Ingest: bring the log days of a source into the lake as contract tables, by fixed rules for bad input.

    ingest(source=Path("kuairand-pure"), day=date(2022, 5, 5), lake=Path("lake"), bootstrap=True)

| met in the source | what happens | counted as |
|---|---|---|
| no folder, unknown layout | stop, naming the known layouts | |
| missing column, other encoding, empty or cut file | stop, naming the file and the line | |
| line with too few or too many columns, value of another type | stop, naming the file, the line and the value | |
| day before the first or after the last log day | stop, naming the days there are | |
| zero rows for the day, or none that can be used | stop, naming the days there are | |
| exact copy of a row (in all contract columns) | drop | duplicates |
| same user, item and time as another row, other values | keep the longest play, quarantine | conflicting_duplicate |
| same user, item and time as a row of the log day before | quarantine | repeats_day_before |
| user or item id missing or negative | quarantine | no_id |
| time stamp missing | quarantine | no_time |
| time stamp over 6 h outside the log day | quarantine | time_outside_day |
| time stamp up to 6 h outside the log day | keep, in the partition of its log day | time_near_day |
| play time negative | keep, play time null | play_time_negative |
| play time over 100 times the duration | keep, play time null | play_time_too_long |
| duration zero or negative | keep, duration null | duration_not_positive |
| label that is not 0 or 1 | keep, label null | label_not_binary |
| user that the feature files do not know | keep, added to users with nulls | unknown_user |
| item that the feature files do not know | keep, added to items with author -1 | unknown_item |
| item without an author | keep, author -1 | author_missing |

Quarantined rows lie unchanged in `quarantine.parquet` of the partition, with the reason. So
rows_read = duplicates + quarantined + kept, in every partition (tested). The same source gives the same digests.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from datasets import cleaning
from datasets.adapters import detect
from datasets.adapters.base import Adapter
from datasets.adapters.csv_files import quoted
from datasets.contract import ITEMS
from datasets.errors import DataError
from datasets.partitions import PART, partition_days, partition_path, sha256, write_partition

QUARANTINE = "quarantine.parquet"

_UNREADABLE = (
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.InvalidTypeException,
    duckdb.IOException,
    duckdb.OutOfRangeException,
)
"""What DuckDB raises for a damaged file or a value of another type that the adapter let pass."""


def ingest(
    *, source: Path, day: date, lake: Path, bootstrap: bool, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write the day (bootstrap: every log day up to it, and the untimed history) and the day after, if there is one.

    The day after is for evaluation only; items and users are those known at the end of `day`. Raises DataError, and
    writes nothing, for a source that cannot be used. Returns the adapter, the days, and each table's rows, digest and
    counts.
    """
    adapter = detect(source)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        try:
            known = adapter.days(con)
            wanted = _wanted(source, known, day, bootstrap)
            following = [d for d in known if d == day + timedelta(days=1)]
            tables = _Lake(con, adapter, lake, day, progress).write(known, wanted, following, bootstrap)
        except _UNREADABLE as error:
            text = str(error).splitlines()[0]
            raise DataError(
                f"source {source} ({adapter.name}) cannot be read: {text}. Mend the file or the type"
            ) from error
    evaluation = [d for d in following if f"impressions/dt={d}" in tables]
    return {
        "adapter": adapter.name,
        "timezone": adapter.timezone,
        "days": [d.isoformat() for d in wanted],
        "evaluation_day": evaluation[0].isoformat() if evaluation else None,
        "tables": tables,
        "counts": _totals(tables, evaluation),
    }


class _Lake:
    """One run of the ingest: reads everything first, so that a bad source changes nothing, then writes."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, adapter: Adapter, lake: Path, day: date, progress: Callable[[str], None]
    ) -> None:
        self.con, self.adapter, self.lake, self.day, self.progress = con, adapter, lake, day, progress
        self.tables: dict[str, dict[str, Any]] = {}
        self.hashes: dict[Path, str] = {}

    def write(
        self, known: list[date], wanted: list[date], following: list[date], bootstrap: bool
    ) -> dict[str, dict[str, Any]]:
        con, day = self.con, self.day
        bad_items, item_counts = cleaning.split_entities(con, self.adapter.items(con, day), "items", "item_id")
        bad_users, user_counts = cleaning.split_entities(con, self.adapter.users(con, day), "users", "user_id")
        cleaning.check_user_columns(con)
        # The day before is read only to find the rows that it holds too; none of it is written.
        before = wanted[0] - timedelta(days=1)
        days = [*(d for d in known if d == before), *wanted, *following]
        cleaning.judge_impressions(con, self.adapter.impressions(con, days), days, self.adapter.timezone)
        found = dict(con.execute("SELECT dt, count(*) FROM judged WHERE reason IS NULL GROUP BY dt").fetchall())
        for d in wanted:
            if not found.get(d):
                read = cleaning.count_impressions(con, d)
                why = f" ({read['rows_read']} were read: {_reasons(read)})" if read["rows_read"] else ""
                raise DataError(
                    f"{self.adapter.source} has no usable rows for {d}{why}; it has rows for {_spell(sorted(found))}. "
                    "Copy that day's log again, or ask for one of these days"
                )
        history = self.adapter.history(con) if bootstrap else None
        if history:
            good, bad, counts = cleaning.split_history(con, history)
            self._put("history", good, bad, counts)
            self.progress(f"history: {good.num_rows:,} interactions")
        for d in [*wanted, *(d for d in following if found.get(d))]:
            rows = cleaning.kept_impressions(con, d)
            counts = cleaning.count_impressions(con, d)
            self._put(f"impressions/dt={d}", rows, cleaning.quarantined_impressions(con, d), counts, self._sources(d))
            self.progress(f"impressions {d}: {rows.num_rows:,} rows{_mention(counts)}")
        self._write_entities(wanted, bootstrap, (bad_items, item_counts), (bad_users, user_counts))
        return self.tables

    def _write_entities(
        self,
        wanted: list[date],
        bootstrap: bool,
        items: tuple[pa.Table, dict[str, int]],
        users: tuple[pa.Table, dict[str, int]],
    ) -> None:
        """Write items and users: what the feature files know, and whoever occurs in the lake up to the day."""
        table = self.lake / "impressions"
        days = wanted if bootstrap else [d for d in partition_days(table) if d <= self.day]
        files = [partition_path(table, d) / PART for d in days]
        files += [
            f for f in [self.lake / "history" / PART] if f.exists() and (not bootstrap or "history" in self.tables)
        ]
        seen = ", ".join(quoted(str(file)) for file in files)
        for name, (bad, counts) in {"items": items, "users": users}.items():
            key = f"{name[:-1]}_id"
            self.con.execute(
                f"""CREATE OR REPLACE TEMP TABLE {name}_unknown AS SELECT DISTINCT {key}
                FROM read_parquet([{seen}], union_by_name=true) ANTI JOIN {name} USING ({key})"""
            )
            self.con.execute(f"INSERT INTO {name} BY NAME SELECT * FROM {name}_unknown")
            added = self.con.execute(f"SELECT count(*) FROM {name}_unknown").fetchall()[0][0]
            counts = counts | {f"unknown_{name[:-1]}": added}
            if name == "items":
                missing = "SELECT count(*) FROM items ANTI JOIN items_unknown USING (item_id) WHERE author_id IS NULL"
                counts["author_missing"] = self.con.execute(missing).fetchall()[0][0]
                counts["duration_not_positive"] = self.con.execute(
                    "SELECT count(*) FROM items WHERE duration_ms <= 0"
                ).fetchall()[0][0]
                columns = """* REPLACE (coalesce(author_id, -1) AS author_id,
                    CASE WHEN duration_ms > 0 THEN duration_ms END AS duration_ms)"""
            else:
                columns = "*"
            rows = self.con.sql(f"SELECT {columns} FROM {name} ORDER BY {key}").to_arrow_table()
            rows = rows.select(ITEMS.names).cast(ITEMS) if name == "items" else _not_null(rows, key)
            self._put(f"{name}/dt={self.day}", rows, bad, counts)
            self.progress(f"{name} {self.day}: {rows.num_rows:,} rows{_mention(counts)}")

    def _put(
        self, name: str, rows: pa.Table, bad: pa.Table, counts: dict[str, int], sources: dict[str, str] | None = None
    ) -> None:
        extra = {QUARANTINE: bad} if bad.num_rows else None
        fields = {"sources": sources, "timezone": self.adapter.timezone} if sources else {}
        manifest = write_partition(self.lake / name, rows, counts=counts, extra_files=extra, **fields)
        self.tables[name] = {key: manifest[key] for key in ("rows", "digest", "counts")}

    def _sources(self, day: date) -> dict[str, str]:
        """sha256 of each file that the day came from, by its path inside the source: the partition's provenance."""
        files = self.adapter.files(day)
        self.hashes |= {file: sha256(file) for file in files if file not in self.hashes}
        return {str(file.relative_to(self.adapter.source)): self.hashes[file] for file in files}


def _wanted(source: Path, known: list[date], day: date, bootstrap: bool) -> list[date]:
    """The log days to write. Raises DataError if the source has not the day."""
    if not known:
        raise DataError(f"{source} has no log rows at all: copy the log again")
    if not known[0] <= day <= known[-1]:
        raise DataError(
            f"day {day} is out of the range of {source}, which has {_spell(known)}: ask for one of these days"
        )
    if day not in known:
        raise DataError(f"{source} has no rows for {day}; it has rows for {_spell(known)}: ask for one of these days")
    return [d for d in known if d <= day] if bootstrap else [day]


def _spell(days: list[date]) -> str:
    """Days as ranges: 2022-04-25 to 2022-05-01, 2022-05-03."""
    runs: list[list[date]] = []
    for d in days:
        if runs and d - runs[-1][-1] == timedelta(days=1):
            runs[-1].append(d)
        else:
            runs.append([d])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "no day"


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[reason]} {reason}" for reason in cleaning.QUARANTINED if counts[reason])


def _mention(counts: dict[str, int]) -> str:
    met = [f"{name} {count:,}" for name, count in counts.items() if count and name != "rows_read"]
    return f" ({', '.join(met)})" if met else ""


def _not_null(rows: pa.Table, key: str) -> pa.Table:
    fields = [field.with_nullable(field.name != key) for field in rows.schema]
    return rows.cast(pa.schema(fields))


def _totals(tables: dict[str, dict[str, Any]], evaluation: list[date]) -> dict[str, int]:
    """Counts summed over the impressions up to the day; those of the other tables stand under `<table>.<rule>`."""
    totals: dict[str, int] = {}
    for name, entry in tables.items():
        table, _, dt = name.partition("/dt=")
        if table == "impressions" and dt in [d.isoformat() for d in evaluation]:
            continue
        prefix = "" if table == "impressions" else f"{table}."
        for rule, count in entry["counts"].items():
            totals[prefix + rule] = totals.get(prefix + rule, 0) + count
    return totals
