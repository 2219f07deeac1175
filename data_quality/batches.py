"""The data that the suites look at: a pandas frame a table, read from the lake by DuckDB, with the columns joins need.

Great Expectations judges columns of one frame. What takes two tables or the calendar (is this item in the items table,
how far outside the log day is this time) is computed here as a column, so that each rule is one plain expectation.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.cleaning import day_bounds
from datasets.contract import IMPRESSIONS, ITEMS, LABELS, POSITIVE_LABELS, USERS, positive
from datasets.errors import DataError
from datasets.partitions import MANIFEST, PART, partition_days, partition_path, read_manifest

TRAILING_DAYS = 7


@dataclass(frozen=True, kw_only=True)
class Trailing:
    """What the days before looked like: median rows, and for each label the share of known values and the rate of 1."""

    rows: float | None = None
    known: dict[str, float] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)


def schema_frame(lake: Path, partition: str) -> pd.DataFrame:
    """A row a column: `partition`, `column`, its `type`, its `contract_type`; "missing" where one side has it not."""
    table = partition.split("/")[0]
    read_manifest(lake / partition)
    found = {f.name: _spell(f.type) for f in pq.read_schema(lake / partition / PART)}
    contract = {"impressions": IMPRESSIONS, "items": ITEMS, "users": USERS}[table]
    wanted = {f.name: _spell(f.type) for f in contract}
    if table == "users":
        categories = ("string", "int64", "int32", "int16", "int8")
        features = {name: kind for name, kind in found.items() if name not in wanted}
        wanted |= {name: kind if kind in categories else "string or integer" for name, kind in features.items()}
    rows = [(partition, name, found.get(name, "missing"), wanted.get(name, "missing")) for name in wanted | found]
    return pd.DataFrame(rows, columns=["partition", "column", "type", "contract_type"])


def impressions_frame(con: duckdb.DuckDBPyConnection, lake: Path, day: date, last: date) -> pd.DataFrame:
    """The impressions of `day`, judged against the items and users of `last`, the day of the run."""
    folder = partition_path(lake / "impressions", day)
    start, end = day_bounds(day, _zone(folder))
    known = " OR ".join(f"{name} IS NOT NULL" for name in POSITIVE_LABELS)
    query = f"""SELECT i.*,
        coalesce(item_id IN (SELECT item_id FROM read_parquet($items)), false) AS item_known,
        coalesce(user_id IN (SELECT user_id FROM read_parquet($users)), false) AS user_known,
        greatest(epoch_ms($start) - epoch_ms(event_time), epoch_ms(event_time) - epoch_ms($end), 0) / 3.6e6
            AS hours_outside_day,
        play_time_ms / nullif(duration_ms, 0) AS plays,
        CAST({positive()} AS TINYINT) AS is_positive,
        CAST({known} AS TINYINT) AS is_positive_known
        FROM read_parquet($impressions) i"""
    files = {"impressions": folder / PART} | {
        name: partition_path(lake / name, last) / PART for name in ("items", "users")
    }
    parameters = {name: str(file) for name, file in files.items()} | {"start": start, "end": end}
    return con.execute(query, parameters).df()


def entity_frame(con: duckdb.DuckDBPyConnection, lake: Path, table: str, day: date) -> pd.DataFrame:
    """The items or users of the day; items with `hours_after_day` (of the upload) and `is_described` (any content)."""
    folder = partition_path(lake / table, day)
    if table == "users":
        return con.execute("SELECT * FROM read_parquet(?)", [str(folder / PART)]).df()
    _, end = day_bounds(day, _zone(partition_path(lake / "impressions", day)))
    query = """SELECT item_id, author_id, upload_time, duration_ms, caption, len(tags) AS tag_count,
        greatest(epoch_ms(upload_time) - epoch_ms($end), 0) / 3.6e6 AS hours_after_day,
        CAST(coalesce(len(tags), 0) > 0 OR coalesce(caption, asr, ocr) IS NOT NULL
             OR content_embedding IS NOT NULL AS TINYINT) AS is_described
        FROM read_parquet($file)"""
    return con.execute(query, {"file": str(folder / PART), "end": end}).df()


def intake_frame(lake: Path, names: list[str]) -> pd.DataFrame:
    """A row a partition: what the ingest counted there, as shares of the rows it read."""
    rows = []
    for name in names:
        counts = read_manifest(lake / name)["counts"]
        read = max(counts.get("rows_read", 0), 1)
        quarantined = ("no_id", "no_time", "time_outside_day", "conflicting_duplicate", "repeats_day_before")
        mended = ("play_time_negative", "play_time_too_long", "label_not_binary")
        shares = {
            "partition": name,
            "duplicates": counts.get("duplicates", 0) / read,
            "quarantined": sum(counts.get(rule, 0) for rule in quarantined) / read,
            "mended": sum(counts.get(rule, 0) for rule in mended) / read,
            "near_day": counts.get("time_near_day", 0) / read,
            "unknown": max(counts.get("unknown_item", 0), counts.get("unknown_user", 0)) / read,
        }
        rows.append(shares)
    return pd.DataFrame(rows)


def trailing(con: duckdb.DuckDBPyConnection, lake: Path, day: date) -> Trailing:
    """Of at most TRAILING_DAYS partitions before the day; empty for the first day of a lake."""
    days = [d for d in partition_days(lake / "impressions") if d < day][-TRAILING_DAYS:]
    if not days:
        return Trailing()
    folders = [partition_path(lake / "impressions", d) for d in days]
    sums = ", ".join(f"count({name}) / count(*), coalesce(avg({name}), 0)" for name in LABELS)
    files = [str(folder / PART) for folder in folders]
    row = con.execute(f"SELECT {sums} FROM read_parquet(?)", [files]).fetchall()[0]
    return Trailing(
        rows=statistics.median(read_manifest(folder)["rows"] for folder in folders),
        known=dict(zip(LABELS, row[0::2])),
        rate=dict(zip(LABELS, row[1::2])),
    )


def item_rows_before(lake: Path, day: date) -> int | None:
    """Rows of the newest items partition before the day."""
    days = [d for d in partition_days(lake / "items") if d < day]
    return read_manifest(partition_path(lake / "items", days[-1]))["rows"] if days else None


def _zone(impressions: Path) -> str:
    """The zone of the log days, as the ingest wrote it beside the impressions."""
    zone = read_manifest(impressions).get("timezone")
    if zone is None:
        raise DataError(f"{impressions / MANIFEST} has no timezone: run the ingest of that day again")
    return str(zone)


def _spell(kind: pa.DataType) -> str:
    # The name of a list's element differs with the writer and means nothing.
    return str(kind).replace("item: ", "element: ").replace(" not null", "")
