"""Where the transformations run: DuckDB in this process by default, Spark in a cluster. The expressions are the same.

    engine = duckdb_engine(memory="3GB", threads=2, spill=Path("var/tmp"))
    engine = spark_engine(SparkSession.builder.getOrCreate())       # needs pyspark and a Java 17
    table = engine.lists(transforms.newest(events, 20), {"short_item_id": "item_id"})

An engine reads files, keeps an intermediate table, and hands over a result as Arrow. What differs between the two is in
this file only; `tests/feature_repo/test_engines.py` proves that they give the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa


@ibis.udf.scalar.builtin(name="epoch_ms")
def _duckdb_ms(at: ibis.dtype("timestamp('UTC')")) -> int:  # type: ignore[valid-type, empty-body]
    """Unix milliseconds of a timestamp in DuckDB."""


@ibis.udf.scalar.builtin(name="unix_millis")
def _spark_ms(at: ibis.dtype("timestamp('UTC')")) -> int:  # type: ignore[valid-type, empty-body]
    """Unix milliseconds of a timestamp in Spark."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """One database that runs Ibis expressions."""

    backend: Any
    unix_ms: Callable[[ir.Value], ir.Value]
    """Unix milliseconds of a timestamp column: the one function that the two name differently."""

    table: Callable[[str, pa.Table], ir.Table]
    """An Arrow table as one of the engine's, by name. It takes the place of, and frees, what was given by that name."""

    read_files: Callable[[list[str]], ir.Table]
    keep_table: Callable[[str, ir.Table], ir.Table]

    def read(self, partitions: Sequence[Path]) -> ir.Table:
        """The Parquet files of the partitions as one table; the `dt` of their folders is a column, a date."""
        return self.read_files([str(path) for path in partitions])

    def keep(self, name: str, table: ir.Table) -> ir.Table:
        """The rows computed once. They replace what was kept by that name."""
        return self.keep_table(name, table)

    def arrow(self, table: ir.Table) -> pa.Table:
        """The rows as Arrow."""
        return self.backend.to_pyarrow(table)

    def lists(self, events: ir.Table, columns: Mapping[str, str], keys: Sequence[str] = ("user_id",)) -> pa.Table:
        """One row a user (or another key), sorted; each field of its events as a list. columns: output name -> field.

        The lists are in the order of `ord`, then of `item_id`. The engine sorts and Arrow packs, because an ordered
        `collect` does not exist in Spark, and sorting collected structs costs DuckDB eight times as much.
        """
        order = [*keys, "ord", "item_id", *(f for f in dict.fromkeys(columns.values()) if f != "item_id")]
        flat = self.arrow(events.select(*order).order_by(order))
        new_N = np.zeros(len(flat), bool)
        new_N[:1] = True
        for key in keys:
            values = flat[key].to_numpy()
            new_N[1:] |= values[1:] != values[:-1]
        first = np.flatnonzero(new_N)
        offsets = pa.array(np.append(first, len(flat)), pa.int32())
        lists = {
            name: pa.ListArray.from_arrays(offsets, pa.array(flat[field].to_numpy(), pa.int64()))
            for name, field in columns.items()
        }
        return pa.table({**{key: flat[key].take(pa.array(first)) for key in keys}, **lists})

    def close(self) -> None:
        """Give the memory back. A Spark session is its owner's and goes on."""
        if self.backend.name == "duckdb":
            self.backend.disconnect()


def duckdb_engine(*, memory: str = "3GB", threads: int = 2, spill: Path | None = None) -> Engine:
    """DuckDB within `memory`; what does not fit goes to the folder `spill` (default: DuckDB's own choice)."""
    folder = {} if spill is None else {"temp_directory": str(spill)}
    backend = ibis.duckdb.connect(memory_limit=memory, threads=threads, **folder)

    def read_files(folders: list[str]) -> ir.Table:
        return backend.read_parquet([f"{f}/part-0.parquet" for f in folders], hive_partitioning=True)

    def keep(name: str, table: ir.Table) -> ir.Table:
        # Not Ibis's own `cache`: with this DuckDB it drops nothing.
        backend.raw_sql(f'DROP TABLE IF EXISTS "{name}"')
        return backend.create_table(name, table, temp=True)

    def table(name: str, arrow: pa.Table) -> ir.Table:
        # Not Ibis's `memtable`, which stays registered, so that the tables of all ranges of users pile up in memory.
        backend.con.register(name, arrow)
        return backend.table(name)

    return Engine(backend=backend, unix_ms=_duckdb_ms, table=table, read_files=read_files, keep_table=keep)


def spark_engine(session: Any) -> Engine:
    """A Spark session, local or of a cluster. Its time zone is set to UTC."""
    session.conf.set("spark.sql.session.timeZone", "UTC")
    backend = ibis.pyspark.connect(session)

    def read_files(folders: list[str]) -> ir.Table:
        name = ibis.util.gen_name("files")
        base = str(Path(folders[0]).parent)
        files = [f"{f}/part-0.parquet" for f in folders]
        session.read.option("basePath", base).parquet(*files).createOrReplaceTempView(name)
        return backend.table(name)

    def table(name: str, arrow: pa.Table) -> ir.Table:
        # Not Ibis's `memtable`, which `cache` does not find in Spark.
        session.createDataFrame(arrow).createOrReplaceTempView(name)
        return backend.table(name)

    kept: dict[str, Any] = {}

    def keep(name: str, table: ir.Table) -> ir.Table:
        fresh = table.cache()
        if name in kept:
            kept[name].release()
        kept[name] = fresh
        return fresh

    return Engine(backend=backend, unix_ms=_spark_ms, table=table, read_files=read_files, keep_table=keep)
