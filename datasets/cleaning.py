"""The rules for bad input as SQL, alike for every source: what becomes of a row that is not as the contract says.

`datasets.ingest` runs these and its docstring has the table of rules. A row goes one of three ways: kept (perhaps with
a value made null), dropped because it is an exact copy of another, or quarantined with a reason. The functions take an
open DuckDB connection and talk through temporary tables: `raw` -> `judged`, which holds every distinct row once.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from datetime import time as clock
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from datasets.contract import HISTORY, IMPRESSIONS, LABELS
from datasets.errors import DataError

TOLERANCE = timedelta(hours=6)
"""How far outside its log day an event may lie: KuaiRand's lie up to 2.2 hours before it (clocks of phones)."""

MAX_PLAYS = 100
"""A play time over this many durations is not believed."""

NO_ID = "(user_id IS NULL OR item_id IS NULL OR user_id < 0 OR item_id < 0)"
QUARANTINED = ("no_id", "no_time", "time_outside_day", "conflicting_duplicate", "repeats_day_before")
KEPT = ("time_near_day", "play_time_negative", "play_time_too_long", "duration_not_positive", "label_not_binary")

_FLAGS = {
    "time_near_day": "(event_time < day_start OR event_time >= day_end)",
    "play_time_negative": "coalesce(play_time_ms < 0, false)",
    "play_time_too_long": f"coalesce(duration_ms > 0 AND play_time_ms > {MAX_PLAYS} * duration_ms, false)",
    "duration_not_positive": "coalesce(duration_ms <= 0, false)",
    "label_not_binary": "(" + " OR ".join(f"coalesce({name} NOT IN (0, 1), false)" for name in LABELS) + ")",
}
_MENDED = {
    "play_time_ms": "CASE WHEN NOT play_time_negative AND NOT play_time_too_long THEN play_time_ms END",
    "duration_ms": "CASE WHEN duration_ms > 0 THEN duration_ms END",
} | {name: f"CASE WHEN {name} IN (0, 1) THEN {name} END" for name in LABELS}


def judge_impressions(con: duckdb.DuckDBPyConnection, query: str, days: Iterable[date], zone: str) -> None:
    """Create `raw` from an adapter's query and `judged` from it, with a reason (or null) and the flags of each row."""
    con.execute("CREATE OR REPLACE TEMP TABLE bounds (dt DATE, day_start TIMESTAMP, day_end TIMESTAMP)")
    con.executemany("INSERT INTO bounds VALUES (?, ?, ?)", [(day, *day_bounds(day, zone)) for day in days])
    columns = ", ".join(
        "epoch_ms(epoch_ms(event_time)) AS event_time" if n == "event_time" else n for n in IMPRESSIONS.names
    )
    con.execute(f"CREATE OR REPLACE TEMP TABLE raw AS SELECT dt, {columns} FROM ({query})")
    flags = ", ".join(f"{condition} AS {name}" for name, condition in _FLAGS.items())
    hours = f"INTERVAL {TOLERANCE // timedelta(hours=1)} HOUR"
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE judged AS
        WITH flagged AS (
            SELECT DISTINCT raw.*, {flags}, CASE
                WHEN {NO_ID} THEN 'no_id'
                WHEN event_time IS NULL THEN 'no_time'
                WHEN event_time < day_start - {hours} OR event_time >= day_end + {hours} THEN 'time_outside_day'
            END AS fault
            FROM raw JOIN bounds USING (dt)),
        ranked AS (
            SELECT *, row_number() OVER event AS rank, first_value(dt) OVER event AS first_dt FROM flagged
            -- Of the rows of one event: the earliest log day, then the longest play; the rest only makes it certain.
            WINDOW event AS (PARTITION BY fault IS NULL, user_id, item_id, event_time
                ORDER BY dt, {_MENDED["play_time_ms"]} DESC NULLS LAST, {", ".join(IMPRESSIONS.names)}))
        SELECT * EXCLUDE (fault, rank, first_dt), CASE
            WHEN fault IS NOT NULL THEN fault
            WHEN rank > 1 AND first_dt < dt THEN 'repeats_day_before'
            WHEN rank > 1 THEN 'conflicting_duplicate'
        END AS reason FROM ranked"""
    )


def kept_impressions(con: duckdb.DuckDBPyConnection, day: date) -> pa.Table:
    """The good rows of a day in the contract's columns and order."""
    columns = ", ".join(f"{_MENDED.get(name, name)} AS {name}" for name in IMPRESSIONS.names)
    query = f"SELECT {columns} FROM judged WHERE dt = ? AND reason IS NULL ORDER BY event_time, user_id, item_id"
    return con.sql(query, params=[day]).to_arrow_table().cast(IMPRESSIONS)


def quarantined_impressions(con: duckdb.DuckDBPyConnection, day: date) -> pa.Table:
    """The rows of a day that cannot be used, as they came, with the reason."""
    names = ", ".join(("reason", *IMPRESSIONS.names))
    query = f"SELECT {names} FROM judged WHERE dt = ? AND reason IS NOT NULL ORDER BY {names}"
    return con.sql(query, params=[day]).to_arrow_table()


def count_impressions(con: duckdb.DuckDBPyConnection, day: date) -> dict[str, int]:
    """How often each rule met a row of the day. Needs the tables `items` and `users` (what the feature files know)."""
    counts = {"rows_read": _one(con, "SELECT count(*) FROM raw WHERE dt = ?", day)}
    counts["duplicates"] = counts["rows_read"] - _one(con, "SELECT count(*) FROM judged WHERE dt = ?", day)
    for reason in QUARANTINED:
        counts[reason] = _one(con, f"SELECT count(*) FROM judged WHERE dt = ? AND reason = '{reason}'", day)
    for flag in KEPT:
        counts[flag] = _one(con, f"SELECT count(*) FROM judged WHERE dt = ? AND reason IS NULL AND {flag}", day)
    for table in ("item", "user"):
        unknown = f"{table}_id NOT IN (SELECT {table}_id FROM {table}s)"
        counts[f"unknown_{table}"] = _one(
            con, f"SELECT count(*) FROM judged WHERE dt = ? AND reason IS NULL AND {unknown}", day
        )
    return counts


def split_entities(con: duckdb.DuckDBPyConnection, query: str, table: str, key: str) -> tuple[pa.Table, dict[str, int]]:
    """Create the table `table` (items or users), one row an id; return the quarantined rows and the counts."""
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table}_read AS SELECT * FROM ({query})")
    types = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {table}_read").fetchall()}
    names = ", ".join(f'"{name}"' for name in types)
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
    bad = f"SELECT reason, {names} FROM {table}_judged WHERE reason IS NOT NULL ORDER BY reason, {names}"
    return con.sql(bad).to_arrow_table(), counts


def split_history(con: duckdb.DuckDBPyConnection, query: str) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """The untimed history in the contract's columns and order, the quarantined rows, and the counts."""
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
    bad = con.sql(f"SELECT reason, {names} FROM history WHERE reason IS NOT NULL ORDER BY {names}").to_arrow_table()
    con.execute("DELETE FROM history WHERE reason IS NOT NULL")
    columns = ", ".join(labels.get(name, name) for name in HISTORY.names)
    good = con.sql(f"SELECT {columns} FROM history ORDER BY user_id, pos, {names}").to_arrow_table()
    return good.cast(HISTORY), bad, counts


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


def _one(con: duckdb.DuckDBPyConnection, query: str, *parameters: object) -> int:
    # fetchall, because DuckDB holds a connection whose result is not read to its end.
    return int(con.execute(query, list(parameters)).fetchall()[0][0])
