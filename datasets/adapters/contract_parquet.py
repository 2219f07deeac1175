"""The contract tables themselves, as Parquet: what the simulator writes, and the simplest way to bring your own logs.

    impressions/dt=YYYY-MM-DD/*.parquet    the log, one folder a log day, columns of datasets.contract.IMPRESSIONS
    items/*.parquet  or  items/dt=.../     all items, or a snapshot a day (the newest not after the day is read)
    users/*.parquet  or  users/dt=.../     likewise: user_id and any categorical columns
    history/*.parquet                      optional, columns of HISTORY
    source.json                            optional, {"timezone": "Asia/Shanghai"}: the zone of the log days, else UTC

A signal that you lack is a column of nulls. Times are timestamps in UTC.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.adapters.base import Adapter
from datasets.adapters.csv_files import quoted
from datasets.contract import HISTORY, IMPRESSIONS, ITEMS, USERS
from datasets.errors import DataError


class ContractParquet(Adapter):
    """A folder with the contract tables as Parquet files."""

    name = "contract-parquet"
    layout = "contract Parquet: impressions/dt=YYYY-MM-DD/*.parquet, items/*.parquet, users/*.parquet"

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        settings = source / "source.json"
        if settings.exists():
            try:
                self.timezone = json.loads(settings.read_text(encoding="utf-8")).get("timezone", "UTC")
                ZoneInfo(self.timezone)
            except (ValueError, AttributeError, ZoneInfoNotFoundError) as error:
                raise DataError(f'{settings} cannot be read ({error}): write {{"timezone": "Asia/Shanghai"}}') from None

    @classmethod
    def matches(cls, source: Path) -> bool:
        tables = all(any((source / table).rglob("*.parquet")) for table in ("items", "users"))
        return tables and any(source.glob("impressions/dt=*/*.parquet"))

    def days(self, con: duckdb.DuckDBPyConnection) -> list[date]:
        return _days(self.source / "impressions")

    def files(self, day: date) -> list[Path]:
        return sorted((self.source / "impressions" / f"dt={day}").glob("*.parquet"))

    def impressions(self, con: duckdb.DuckDBPyConnection, days: list[date]) -> str:
        parts = []
        for day in days:
            source = _read(self.files(day), IMPRESSIONS)
            parts.append(f"SELECT DATE '{day}' AS dt, {_cast(IMPRESSIONS)} FROM {source}")
        return " UNION ALL ".join(parts)

    def items(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        return f"SELECT {_cast(ITEMS)} FROM {_read(self.snapshot('items', day), ITEMS)}"

    def users(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        return f"SELECT * FROM {_read(self.snapshot('users', day), USERS)}"

    def history(self, con: duckdb.DuckDBPyConnection) -> str | None:
        files = sorted((self.source / "history").glob("*.parquet"))
        return f"SELECT {_cast(HISTORY)} FROM {_read(files, HISTORY)}" if files else None

    def snapshot_days(self, table: str) -> list[date]:
        """The days that items or users have a snapshot of; none if all lie in one folder."""
        return _days(self.source / table)

    def snapshot(self, table: str, day: date) -> list[Path]:
        """The files of the newest items or users not after a day."""
        folder = self.source / table
        if days := [found for found in _days(folder) if found <= day]:
            folder = folder / f"dt={days[-1]}"
        if not (files := sorted(folder.glob("*.parquet"))):
            raise DataError(f"{folder} has no Parquet file for {day}: add a snapshot not after that day")
        return files


def _days(folder: Path) -> list[date]:
    try:
        return sorted({date.fromisoformat(path.parent.name[3:]) for path in folder.glob("dt=*/*.parquet")})
    except ValueError as error:
        raise DataError(f"{folder} has a folder that is no day ({error}): name it dt=YYYY-MM-DD") from None


def _read(files: list[Path], schema: pa.Schema) -> str:
    for file in files:
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is no whole Parquet file ({str(error).splitlines()[0]}): copy it again") from None
        for name in schema.names:
            if name not in names:
                raise DataError(
                    f"{file} has no column {name!r}: add it, filled with nulls if your source lacks the signal"
                )
    return (
        f"read_parquet([{', '.join(quoted(str(file)) for file in files)}], union_by_name=true, hive_partitioning=false)"
    )


def _cast(schema: pa.Schema) -> str:
    # epoch_ms twice: a timestamp with or without a zone becomes UTC without a zone, at the contract's resolution.
    types = {"int64": "BIGINT", "int32": "INTEGER", "int8": "TINYINT", "string": "VARCHAR"}
    types |= {
        "list<element: int32>": "INTEGER[]",
        "list<element: string>": "VARCHAR[]",
        "list<element: float>": "FLOAT[]",
    }
    columns = []
    for field in schema:
        kind = str(field.type).replace("item:", "element:")
        cast = f"CAST({field.name} AS {types[kind]})" if kind in types else f"epoch_ms(epoch_ms({field.name}))"
        columns.append(f"{cast} AS {field.name}")
    return ", ".join(columns)
