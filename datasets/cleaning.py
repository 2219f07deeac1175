"""The rules for bad input as SQL, alike for every source: what becomes of a row that is not as the contract says.

`datasets.ingest` runs these and its docstring has the table of rules. A row goes one of three ways: kept (perhaps with
a value made null), dropped because it is an exact copy of another, or quarantined with a reason.

The functions take an open DuckDB connection. `stage` copies an adapter's impressions into one folder of Parquet a log
day, in one pass; then one day at a time: `judge_day` makes the temporary table `judged`, which holds every distinct row
of the day once. What does not fit into the connection's memory limit spills to its temporary folder.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb

from datasets.contract import HISTORY, IMPRESSIONS, LABELS, identifier
from datasets.errors import DataError

TOLERANCE = timedelta(hours=6)
"""How far outside its log day an event may lie: KuaiRand's lie up to 2.2 hours before it (clocks of phones)."""

MAX_PLAYS = 100
"""A play time over this many durations is not believed."""

STAGED_ROWS = 1 << 16
"""Rows that a staged day buffers before it writes them."""

NO_ID = "(user_id IS NULL OR item_id IS NULL OR user_id < 0 OR item_id < 0)"
QUARANTINED = ("no_id", "no_time", "too_late", "too_far_ahead", "conflicting_duplicate", "repeats_day_before")
KEPT = ("late", "ahead_of_day", "play_time_negative", "play_time_too_long", "duration_not_positive", "label_not_binary")
ORDER = "out_of_order"

_FLAGS = {
    "late": "(event_time < day_start)",
    "ahead_of_day": "(event_time >= day_end)",
    "play_time_negative": "coalesce(play_time_ms < 0, false)",
    "play_time_too_long": f"coalesce(duration_ms > 0 AND play_time_ms > {MAX_PLAYS} * duration_ms, false)",
    "duration_not_positive": "coalesce(duration_ms <= 0, false)",
    "label_not_binary": "(" + " OR ".join(f"coalesce({name} NOT IN (0, 1), false)" for name in LABELS) + ")",
}
_MENDED = {
    "play_time_ms": "CASE WHEN NOT play_time_negative AND NOT play_time_too_long THEN play_time_ms END",
    "duration_ms": "CASE WHEN duration_ms > 0 THEN duration_ms END",
} | {name: f"CASE WHEN {name} IN (0, 1) THEN {name} END" for name in LABELS}
_HOURS = f"INTERVAL {TOLERANCE // timedelta(hours=1)} HOUR"
_FAULT = f"""CASE WHEN {NO_ID} THEN 'no_id'
    WHEN event_time IS NULL THEN 'no_time'
    WHEN event_time < day_start - {_HOURS} THEN 'too_late'
    WHEN event_time >= day_end + {_HOURS} THEN 'too_far_ahead' END"""
_EVENT = ("user_id", "item_id", "event_time")


def stage(con: duckdb.DuckDBPyConnection, query: str, folder: Path) -> None:
    """Copy impressions into `folder`/dt=YYYY-MM-DD/*.parquet, with `source_row`, their place in the source."""
    columns = ", ".join(
        "epoch_ms(epoch_ms(event_time)) AS event_time" if n == "event_time" else n for n in IMPRESSIONS.names
    )
    # A buffer for each open day: rows are let go before many days at once fill the memory.
    con.execute(f"SET partitioned_write_flush_threshold = {STAGED_ROWS}")
    con.execute(
        f"""COPY (SELECT dt, {columns}, row_number() OVER () AS source_row FROM ({query})) TO '{sql_text(folder)}'
        (FORMAT parquet, PARTITION_BY (dt), ROW_GROUP_SIZE {STAGED_ROWS}, COMPRESSION snappy)"""
    )


def count_usable(con: duckdb.DuckDBPyConnection, folder: Path, day: date, zone: str) -> int:
    """1 if the day has a row that will be kept, else 0: known before anything is written."""
    keys = " AND ".join(f"a.{name} = b.{name}" for name in _EVENT)
    query = f"""WITH {_read(folder, day, zone)}, sound AS (SELECT * FROM read WHERE {_FAULT} IS NULL)
        SELECT count(*) FROM (SELECT 1 FROM sound a WHERE dt = $day AND NOT EXISTS
            (SELECT 1 FROM sound b WHERE b.dt < $day AND {keys}) LIMIT 1)"""
    return _one(con, query, {"day": day})


def judge_day(con: duckdb.DuckDBPyConnection, folder: Path, day: date, zone: str) -> None:
    """Create `judged`: the distinct rows of a staged day, with the flags and the reason (or null) of each."""
    flags = ", ".join(f"{condition} AS {name}" for name, condition in _FLAGS.items())
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE judged AS
        WITH {_read(folder, day, zone)},
        flagged AS (SELECT DISTINCT *, {flags}, {_FAULT} AS fault FROM read),
        ranked AS (
            SELECT *, row_number() OVER event AS rank, first_value(dt) OVER event AS first_dt FROM flagged
            -- Of the rows of one event: the earliest log day, then the longest play; the rest only makes it certain.
            WINDOW event AS (PARTITION BY fault IS NULL, {", ".join(_EVENT)}
                ORDER BY dt, {_MENDED["play_time_ms"]} DESC NULLS LAST, {", ".join(IMPRESSIONS.names)}))
        SELECT * EXCLUDE (dt, day_start, day_end, fault, rank, first_dt), CASE
            WHEN fault IS NOT NULL THEN fault
            WHEN rank > 1 AND first_dt < dt THEN 'repeats_day_before'
            WHEN rank > 1 THEN 'conflicting_duplicate'
        END AS reason FROM ranked WHERE dt = $day""",
        {"day": day},
    )


def kept_impressions() -> str:
    """Query: the good rows of the judged day in the contract's columns and order."""
    columns = ", ".join(f"{_MENDED.get(name, name)} AS {name}" for name in IMPRESSIONS.names)
    return f"SELECT {columns} FROM judged WHERE reason IS NULL ORDER BY event_time, user_id, item_id"


def quarantined_impressions() -> str:
    """Query: the rows of the judged day that cannot be used, as they came, with the reason."""
    names = ", ".join(("reason", *IMPRESSIONS.names))
    return f"SELECT {names} FROM judged WHERE reason IS NOT NULL ORDER BY {names}"


def count_impressions(con: duckdb.DuckDBPyConnection, folder: Path, day: date) -> dict[str, int]:
    """How often each rule met a row of the judged day. Needs the tables `items` and `users` (the feature files)."""
    rows = f"SELECT * FROM read_parquet('{_glob(folder, day)}', hive_partitioning=false)"
    # Out of order: the clock went back, compared with the row before in the source.
    back = f"SELECT event_time < lag(event_time) OVER (ORDER BY source_row) AS back FROM ({rows})"
    read, disorder = con.execute(f"SELECT count(*), count(*) FILTER (back) FROM ({back})").fetchall()[0]
    measures = {"distinct": "count(*)"}
    measures |= {reason: f"count(*) FILTER (reason = '{reason}')" for reason in QUARANTINED}
    measures |= {flag: f"count(*) FILTER (reason IS NULL AND {flag})" for flag in KEPT}
    found = con.execute(f"SELECT {', '.join(measures.values())} FROM judged").fetchall()[0]
    counts = dict(zip(measures, found, strict=True))
    counts = {"rows_read": read, "duplicates": read - counts.pop("distinct"), **counts, ORDER: disorder}
    for table in ("item", "user"):
        unknown = f"SELECT {table}_id FROM judged WHERE reason IS NULL"
        counts[f"unknown_{table}"] = _one(
            con, f"SELECT count(*) FROM ({unknown}) ANTI JOIN {table}s USING ({table}_id)"
        )
    return counts


def _read(folder: Path, day: date, zone: str) -> str:
    """SQL of `read`: the rows of a staged day, and those of the day before that could be of the same events."""
    parts, before = [], day - timedelta(days=1)
    for d, near in ((day, ""), (before, f"WHERE event_time >= TIMESTAMP '{day_bounds(day, zone)[0]}' - {_HOURS}")):
        if next(folder.glob(f"dt={d}/*.parquet"), None):
            start, end = day_bounds(d, zone)
            parts.append(
                f"""SELECT DATE '{d}' AS dt, * EXCLUDE (source_row), TIMESTAMP '{start}' AS day_start,
                TIMESTAMP '{end}' AS day_end FROM read_parquet('{_glob(folder, d)}', hive_partitioning=false) {near}"""
            )
    return f"read AS ({' UNION ALL '.join(parts)})"


def _glob(folder: Path, day: date) -> str:
    return f"{sql_text(folder)}/dt={day}/*.parquet"


def sql_text(path: Path) -> str:
    """A path as the inside of a SQL string literal."""
    return str(path).replace("'", "''")


def split_entities(con: duckdb.DuckDBPyConnection, query: str, table: str, key: str) -> tuple[str, dict[str, int]]:
    """Create the table `table` (items or users), one row an id; return a query of the quarantined rows, and counts."""
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table}_read AS SELECT * FROM ({query})")
    types = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {table}_read").fetchall()}
    names = ", ".join(identifier(name) for name in types)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE {table}_judged AS SELECT *, CASE
            WHEN {key} IS NULL OR {key} < 0 THEN 'no_id'
            WHEN row_number() OVER (PARTITION BY {key} ORDER BY {names}) > 1 THEN 'conflicting_duplicate'
        END AS reason FROM (SELECT DISTINCT * FROM {table}_read)"""
    )
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * EXCLUDE reason FROM {table}_judged WHERE reason IS NULL"
    )
    read = _one(con, f"SELECT count(*) FROM {table}_read")
    counts = {"rows_read": read, "duplicates": read - _one(con, f"SELECT count(*) FROM {table}_judged")}
    for reason in ("no_id", "conflicting_duplicate"):
        counts[reason] = _one(con, f"SELECT count(*) FROM {table}_judged WHERE reason = '{reason}'")
    con.execute(f"DROP TABLE {table}_read")
    con.execute(f"DELETE FROM {table}_judged WHERE reason IS NULL")
    return f"SELECT reason, {names} FROM {table}_judged ORDER BY reason, {names}", counts


def split_history(con: duckdb.DuckDBPyConnection, query: str) -> tuple[str, str, dict[str, int]]:
    """Queries of the untimed history, in the contract's columns and order, and of the quarantined rows; the counts."""
    names = ", ".join(HISTORY.names)
    labels = {name: f"CASE WHEN {name} IN (0, 1) THEN {name} END AS {name}" for name in LABELS}
    con.execute(f"CREATE OR REPLACE TEMP TABLE history_read AS SELECT {names} FROM ({query})")
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE history AS SELECT DISTINCT *, CASE WHEN {NO_ID} OR pos IS NULL THEN 'no_id' END
        AS reason FROM history_read"""
    )
    counts = {"rows_read": _one(con, "SELECT count(*) FROM history_read")}
    counts["duplicates"] = counts["rows_read"] - _one(con, "SELECT count(*) FROM history")
    counts["no_id"] = _one(con, "SELECT count(*) FROM history WHERE reason IS NOT NULL")
    columns = ", ".join(labels.get(name, name) for name in HISTORY.names)
    good = f"SELECT {columns} FROM history WHERE reason IS NULL ORDER BY user_id, pos, {names}"
    return good, f"SELECT reason, {names} FROM history WHERE reason IS NOT NULL ORDER BY {names}", counts


def day_bounds(day: date, zone: str) -> tuple[datetime, datetime]:
    """Start and end of a log day in UTC, without a zone. In a zone with summer time a day may last 23 or 25 hours."""
    tz, utc = ZoneInfo(zone), ZoneInfo("UTC")
    midnights = (datetime.combine(d, clock(), tzinfo=tz) for d in (day, day + timedelta(days=1)))
    start, end = (midnight.astimezone(utc).replace(tzinfo=None) for midnight in midnights)
    return start, end


def check_user_columns(con: duckdb.DuckDBPyConnection) -> None:
    """Raise DataError for a column of `users` that is no categorical feature: neither an integer nor a string."""
    for name, kind, *_ in con.execute("DESCRIBE users").fetchall():
        if kind not in ("VARCHAR", "BIGINT", "INTEGER", "SMALLINT", "TINYINT"):
            raise DataError(
                f"users column {name!r} is {kind}, not a category: write it as a string or an integer, or drop it"
            )


def _one(con: duckdb.DuckDBPyConnection, query: str, parameters: object = None) -> int:
    # fetchall, because DuckDB holds a connection whose result is not read to its end.
    return int(con.execute(query, parameters).fetchall()[0][0])
