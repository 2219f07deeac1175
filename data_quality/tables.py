"""Where the tables to be checked lie, as queries for DuckDB: a lake's partitions, or a folder in the contract's layout.

    tables = lake_tables(Path("lake"), date(2022, 5, 5))        # what the ingest wrote
    tables = folder_tables(Path("logs"))                        # contract Parquet as it came; also a lake
    tables.query("impressions", date(2022, 5, 5))

Both raise DataError for a table that is missing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.adapters.contract_parquet import ContractParquet
from datasets.adapters.csv_files import quoted
from datasets.cleaning import day_bounds
from datasets.contract import IMPRESSIONS, ITEMS, LABELS, POSITIVE_LABELS, USERS, positive
from datasets.errors import DataError
from datasets.partitions import MANIFEST, PART, partition_days, partition_path, read_manifest

TRAILING_DAYS = 7
CONTRACT = {"impressions": IMPRESSIONS, "items": ITEMS, "users": USERS}
CATEGORIES = ("string", "int64", "int32", "int16", "int8")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Files of the impressions a day, of the items and users of the last day, and of those before.

    `manifests`: partition name -> its manifest, where an ingest wrote one. `strict`: as the ingest writes them, types
    are the contract's to the bit and no row stands there twice; else any integer is an integer, and exact copies, which
    the ingest drops, count once.
    """

    impressions: dict[date, list[Path]]
    items: list[Path]
    users: list[Path]
    items_before: list[Path]
    users_before: list[Path]
    last: date
    zone: str
    manifests: dict[str, dict[str, Any]]
    strict: bool

    def files(self, table: str, day: date) -> list[Path]:
        return self.impressions[day] if table == "impressions" else self.items if table == "items" else self.users

    def query(self, table: str, day: date) -> str:
        """The table with the columns that rules need beside its own: what takes two tables, or the calendar."""
        start, end = day_bounds(day, self.zone)
        if table == "users":
            return f"SELECT * FROM {self._rows(self.users)}"
        if table == "items":
            return f"""SELECT *, epoch_ms(upload_time) AS upload_ms, {_ms(end)} AS end_ms, content_embedding AS e,
                (SELECT mode(len(content_embedding)) FROM {scan(self.items)}) AS width,
                CASE WHEN list_count(content_embedding) = len(content_embedding) THEN list_inner_product(
                    CAST(content_embedding AS DOUBLE[]), CAST(content_embedding AS DOUBLE[])) END AS norm
                FROM {self._rows(self.items)}"""
        known = " OR ".join(f"{name} IS NOT NULL" for name in POSITIVE_LABELS)
        return f"""SELECT i.*, epoch_ms(event_time) AS ms, {_ms(start)} AS start_ms, {_ms(end)} AS end_ms,
            k.item_id IS NOT NULL AS item_known, u.user_id IS NOT NULL AS user_known,
            CAST({positive("i.")} AS TINYINT) AS is_positive, CAST({known} AS TINYINT) AS is_positive_known
            FROM {self._rows(self.impressions[day])} i
            LEFT JOIN (SELECT DISTINCT item_id FROM {scan(self.items)}) k ON i.item_id = k.item_id
            LEFT JOIN (SELECT DISTINCT user_id FROM {scan(self.users)}) u ON i.user_id = u.user_id"""

    def _rows(self, files: list[Path]) -> str:
        return scan(files) if self.strict else f"(SELECT DISTINCT * FROM {scan(files)})"


@dataclass(frozen=True, kw_only=True)
class Trailing:
    """What the days before looked like: median rows, and for each label the share of known values and the rate of 1."""

    rows: float | None = None
    known: dict[str, float] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)


def lake_tables(lake: Path, day: date) -> Tables:
    """The partitions that the ingest of a day wrote. Raises DataError for a partition that is missing."""
    manifests = {f"{table}/dt={day}": read_manifest(partition_path(lake / table, day)) for table in ("items", "users")}
    days = partition_days(lake / "impressions")
    manifests |= {f"impressions/dt={d}": read_manifest(partition_path(lake / "impressions", d)) for d in days}
    zone = manifests.get(f"impressions/dt={day}", {}).get("timezone")
    if zone is None:
        path = partition_path(lake / "impressions", day)
        read_manifest(path)
        raise DataError(f"{path / MANIFEST} has no timezone: run the ingest of that day again")
    return Tables(
        impressions={d: [partition_path(lake / "impressions", d) / PART] for d in days},
        items=[partition_path(lake / "items", day) / PART],
        users=[partition_path(lake / "users", day) / PART],
        items_before=_newest(lake / "items", day),
        users_before=_newest(lake / "users", day),
        last=day,
        zone=zone,
        manifests=manifests,
        strict=True,
    )


def folder_tables(folder: Path) -> Tables:
    """A folder in the contract's layout, as it came, with its newest items and users; or a lake (it has manifests)."""
    source = ContractParquet(folder)
    with duckdb.connect() as con:
        days = source.days(con)
    if any((folder / "impressions").glob(f"dt=*/{MANIFEST}")):
        return lake_tables(folder, max(partition_days(folder / "items")))
    before = {
        table: [d for d in source.snapshot_days(table) if d < max(source.snapshot_days(table))]
        for table in ("items", "users")
    }
    return Tables(
        impressions={d: source.files(d) for d in days},
        items=source.snapshot("items", days[-1]),
        users=source.snapshot("users", days[-1]),
        items_before=source.snapshot("items", before["items"][-1]) if before["items"] else [],
        users_before=source.snapshot("users", before["users"][-1]) if before["users"] else [],
        last=days[-1],
        zone=source.timezone,
        manifests={},
        strict=False,
    )


def scan(files: list[Path]) -> str:
    """The rows of Parquet files, as a FROM clause names them."""
    return f"read_parquet([{', '.join(quoted(str(f)) for f in files)}], union_by_name=true, hive_partitioning=false)"


def schema_frame(name: str, files: list[Path], contract: pa.Schema, strict: bool, free: bool = False) -> pd.DataFrame:
    """A row a column: `partition`, `column`, its `type`, its `contract_type`; "missing" where one side has it not.

    free: further columns are allowed if they are categories (users). Raises DataError for a file that is not Parquet.
    """
    rows, wanted = [], {f.name: _spell(f.type) for f in contract}
    for file in files:
        place = name if len(files) == 1 else f"{name}/{file.name}"
        try:
            found = {f.name: _spell(f.type) for f in pq.read_schema(file)}
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is no whole Parquet file ({str(error).splitlines()[0]}): copy it again") from None
        expected = dict(wanted)
        if free:
            features = {n: kind for n, kind in found.items() if n not in wanted}
            expected |= {n: kind if kind in CATEGORIES else "string or integer" for n, kind in features.items()}
        for column in expected | found:
            has, needs = found.get(column, "missing"), expected.get(column, "missing")
            # What a column of nulls is typed as means nothing, and neither does the width of an integer that came so.
            if not strict and _family(has) == _family(needs):
                has = needs
            rows.append((place, column, has, needs))
    return pd.DataFrame(rows, columns=["partition", "column", "type", "contract_type"])


def _newest(table: Path, day: date) -> list[Path]:
    """The file of the newest partition before a day, if there is one."""
    days = [d for d in partition_days(table) if d < day]
    return [partition_path(table, days[-1]) / PART] if days else []


class Labels:
    """Rows and label sums a day, read once a day however many days look back at it."""

    def __init__(self, con: duckdb.DuckDBPyConnection, tables: Tables) -> None:
        self.con, self.tables, self.seen = con, tables, dict[date, list[float]]()

    def before(self, day: date) -> Trailing:
        """Of at most TRAILING_DAYS log days within the two weeks before; empty for the first day."""
        earliest = day - timedelta(days=2 * TRAILING_DAYS)
        days = [d for d in sorted(self.tables.impressions) if earliest <= d < day][-TRAILING_DAYS:]
        found = [sums for d in days if (sums := self._sums(d))]
        if not found:
            return Trailing()
        total = [sum(column) for column in zip(*found)]
        known, ones = total[1::2], total[2::2]
        return Trailing(
            rows=statistics.median(sums[0] for sums in found),
            known={name: k / total[0] for name, k in zip(LABELS, known, strict=True)},
            rate={name: one / k if k else 0.0 for name, one, k in zip(LABELS, ones, known, strict=True)},
        )

    def _sums(self, day: date) -> list[float]:
        if day not in self.seen:
            sums = ", ".join(f"count({name}), coalesce(sum({name}), 0)" for name in LABELS)
            try:
                query = f"SELECT count(*), {sums} FROM {scan(self.tables.impressions[day])}"
                self.seen[day] = [float(value) for value in self.con.execute(query).fetchall()[0]]
            except duckdb.Error:  # a day whose columns are not the contract's says nothing; its own check tells
                self.seen[day] = []
            if self.seen[day][:1] == [0.0]:
                self.seen[day] = []
        return self.seen[day]


def _ms(moment: Any) -> str:
    return f"epoch_ms(TIMESTAMP '{moment}')"


def _spell(kind: pa.DataType) -> str:
    # The name of a list's element differs with the writer and means nothing.
    return str(kind).replace("item: ", "element: ").replace(" not null", "")


def _family(kind: str) -> str:
    """int64, uint8 -> int; large_string -> string; any timestamp -> timestamp; lists of such alike."""
    inner = kind.removeprefix("large_").removeprefix("list<element: ").rstrip(">")
    name = inner.removeprefix("large_").removeprefix("u").split("[")[0].rstrip("0123456789")
    name = {"double": "float", "halffloat": "float"}.get(name, name)
    return f"list of {name}" if "list<" in kind else name
