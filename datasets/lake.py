"""The writer of the ingest: the queries of an adapter, judged by `datasets.cleaning`, become partitions of the lake.

    tables = Lake(con, adapter, lake, day, progress, staged).write(known, wanted, following, bootstrap)

`datasets.ingest` opens the connection, has the table of rules and turns DuckDB's errors into DataErrors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from datasets import cleaning
from datasets.adapters.base import Adapter
from datasets.adapters.csv_files import quoted
from datasets.contract import HISTORY, IMPRESSIONS, ITEMS
from datasets.errors import DataError
from datasets.partitions import PART, partition_days, partition_path, sha256, write_partition
from datasets.tombstones import Tombstones

QUARANTINE = "quarantine.parquet"
_BATCH = 1 << 16


class Lake:
    """One run of the ingest: reads the whole source first, so that a bad one changes nothing, then writes."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        adapter: Adapter,
        lake: Path,
        day: date,
        progress: Callable[[str], None],
        staged: Path,
    ) -> None:
        self.con, self.adapter, self.lake, self.day, self.progress = con, adapter, lake, day, progress
        self.staged, self.zone = staged, adapter.timezone
        self.tables: dict[str, dict[str, Any]] = {}
        self.hashes: dict[Path, str] = {}

    def write(
        self, known: list[date], wanted: list[date], following: list[date], bootstrap: bool
    ) -> dict[str, dict[str, Any]]:
        """Write the partitions of the `wanted` days and of those `following` that are there; what each table counts.

        known: all log days of the source; bootstrap: also write the history before the first. Raises DataError for
        what breaks the contract; nothing is written then.
        """
        con, day = self.con, self.day
        gone = Tombstones.read(self.lake.parent)
        items = cleaning.split_entities(con, self.adapter.items(con, day), "items", "item_id")
        users = cleaning.split_entities(con, gone.without(self.adapter.users(con, day)), "users", "user_id")
        cleaning.check_user_columns(con)
        history = self.adapter.history(con) if bootstrap else None
        split = cleaning.split_history(con, gone.without(history)) if history else None
        # The day before is read only to find the rows that it holds too; none of it is written.
        before = wanted[0] - timedelta(days=1)
        days = [*(d for d in known if d == before), *wanted, *following]
        cleaning.stage(con, gone.without(self.adapter.impressions(con, days)), self.staged)
        usable = [d for d in [*wanted, *following] if self._usable(d)]
        for d in wanted:
            if d not in usable:
                self._raise_for_day(d, usable)
        if split:
            good, bad, counts = split
            rows = self._put("history", good, bad, counts, HISTORY)
            self.progress(f"history: {rows:,} interactions")
        for d in usable:
            cleaning.judge_day(con, self.staged, d, self.zone)
            counts = cleaning.count_impressions(con, self.staged, d)
            kept, bad = cleaning.kept_impressions(), cleaning.quarantined_impressions()
            rows = self._put(f"impressions/dt={d}", kept, bad, counts, IMPRESSIONS, self._sources(d))
            self.progress(f"impressions {d}: {rows:,} rows{_mention(counts)}")
        self._write_entities(wanted, bootstrap, {"items": items, "users": users})
        return self.tables

    def _usable(self, day: date) -> bool:
        staged = next(self.staged.glob(f"dt={day}/*.parquet"), None)
        return staged is not None and cleaning.count_usable(self.con, self.staged, day, self.zone) > 0

    def _raise_for_day(self, day: date, usable: list[date]) -> None:
        why = ""
        if next(self.staged.glob(f"dt={day}/*.parquet"), None):
            cleaning.judge_day(self.con, self.staged, day, self.zone)
            read = cleaning.count_impressions(self.con, self.staged, day)
            why = f" ({read['rows_read']} were read: {_reasons(read)})"
        raise DataError(
            f"{self.adapter.source} has no usable rows for {day}{why}; it has rows for {spell(usable)}. "
            "Copy that day's log again, or ask for one of these days"
        )

    def _write_entities(
        self, wanted: list[date], bootstrap: bool, entities: dict[str, tuple[str, dict[str, int]]]
    ) -> None:
        """Write items and users: what the feature files know, and whoever occurs in the lake up to the day."""
        table = self.lake / "impressions"
        days = wanted if bootstrap else [d for d in partition_days(table) if d <= self.day]
        files = [partition_path(table, d) / PART for d in days]
        files += [
            f for f in [self.lake / "history" / PART] if f.exists() and (not bootstrap or "history" in self.tables)
        ]
        seen = ", ".join(quoted(str(file)) for file in files)
        for name, (bad, counts) in entities.items():
            key = f"{name[:-1]}_id"
            self.con.execute(
                f"""CREATE OR REPLACE TEMP TABLE {name}_unknown AS SELECT DISTINCT {key}
                FROM read_parquet([{seen}], union_by_name=true) ANTI JOIN {name} USING ({key})"""
            )
            self.con.execute(f"INSERT INTO {name} BY NAME SELECT * FROM {name}_unknown")
            counts = counts | {f"unknown_{name[:-1]}": self._count(f"SELECT count(*) FROM {name}_unknown")}
            columns, schema = "*", None
            if name == "items":
                missing = "SELECT count(*) FROM items ANTI JOIN items_unknown USING (item_id) WHERE author_id IS NULL"
                counts["author_missing"] = self._count(missing)
                counts["duration_not_positive"] = self._count("SELECT count(*) FROM items WHERE duration_ms <= 0")
                mended = {
                    "author_id": "coalesce(author_id, -1) AS author_id",
                    "duration_ms": "CASE WHEN duration_ms > 0 THEN duration_ms END AS duration_ms",
                }
                columns, schema = ", ".join(mended.get(n, n) for n in ITEMS.names), ITEMS
            query = f"SELECT {columns} FROM {name} ORDER BY {key}"
            rows = self._put(f"{name}/dt={self.day}", query, bad, counts, schema or self._not_null(query, key))
            self.progress(f"{name} {self.day}: {rows:,} rows{_mention(counts)}")

    def _put(
        self,
        name: str,
        rows: str,
        bad: str,
        counts: dict[str, int],
        schema: pa.Schema,
        sources: dict[str, str] | None = None,
    ) -> int:
        """Write a partition from two queries, the rows and the quarantined ones; return the number of rows."""
        extra = {QUARANTINE: self._stream(bad)} if self._count(f"SELECT count(*) FROM ({bad})") else None
        fields: dict[str, Any] = {"sources": sources, "timezone": self.zone} if sources else {}
        content = self._stream(rows, schema)
        manifest = write_partition(self.lake / name, content, counts=counts, extra_files=extra, **fields)
        self.tables[name] = {key: manifest[key] for key in ("rows", "digest", "counts")}
        return manifest["rows"]

    def _stream(self, query: str, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        """The rows of a query in pieces. It is run when the first one is asked for: a connection has one result."""
        reader = self.con.sql(query).to_arrow_reader(_BATCH)
        schema = schema or reader.schema
        yield schema.empty_table()
        for batch in reader:
            yield pa.Table.from_batches([batch]).cast(schema)

    def _schema(self, query: str) -> pa.Schema:
        return self.con.sql(f"SELECT * FROM ({query}) LIMIT 0").to_arrow_table().schema

    def _not_null(self, query: str, key: str) -> pa.Schema:
        return pa.schema([field.with_nullable(field.name != key) for field in self._schema(query)])

    def _count(self, query: str) -> int:
        return int(self.con.execute(query).fetchall()[0][0])

    def _sources(self, day: date) -> dict[str, str]:
        """sha256 of each file that the day came from, by its path inside the source: the partition's provenance."""
        files = self.adapter.files(day)
        self.hashes |= {file: sha256(file) for file in files if file not in self.hashes}
        return {str(file.relative_to(self.adapter.source)): self.hashes[file] for file in files}


def spell(days: list[date]) -> str:
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
