"""A small simulated lake and pathway tables made of it, and copies of both for a test to spoil."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from zoo import DAY, TABLES, Workspace

from datasets.cleaning import day_bounds
from datasets.contract import EVENT_FIELDS, LABELS, positive
from datasets.ingest import ingest
from datasets.partitions import PART, partition_days, partition_path, write_partition
from datasets.simulator import TIMEZONE, simulate


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three days, 300 impressions each, and a fourth for evaluation; pathway tables as of the end of each."""
    folder = tmp_path_factory.mktemp("quality")
    sizes = {"days": 4, "users": 60, "items": 80, "impressions": 1600}
    simulate(folder / "source", end=date(2025, 1, 4), **sizes, seed=5, progress=quiet)
    day = date.fromisoformat(DAY)
    ingest(source=folder / "source", day=day, lake=folder / "lake", bootstrap=True, progress=quiet)
    for d in partition_days(folder / "lake" / "impressions")[:3]:
        write_pathways(folder / "lake", folder / "features", d)
    return Workspace(folder / "lake", folder / "features")


@pytest.fixture(scope="session")
def lake(workspace: Workspace) -> Path:
    return workspace.lake


@pytest.fixture
def copied(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A copy to spoil."""
    return Workspace(
        Path(shutil.copytree(workspace.lake, tmp_path / "lake")),
        Path(shutil.copytree(workspace.features, tmp_path / "features")),
    )


def write_pathways(lake: Path, features: Path, day: date) -> None:
    """The five tables as of the end of a day, the plain way: whoever came that day, oldest event first."""
    days = [d for d in partition_days(lake / "impressions") if d <= day]
    items, users = (lake / name / f"dt={DAY}" / PART for name in ("items", "users"))
    end = day_bounds(day, TIMEZONE)[1]
    mask = " + ".join(f"CASE WHEN i.{name} = 1 THEN {1 << bit} ELSE 0 END" for bit, name in enumerate(LABELS))
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(
            f"""CREATE TABLE events AS SELECT i.user_id, i.item_id, k.author_id, coalesce(k.tags[1], -1) AS tag,
            epoch_ms(event_time) AS ms, epoch_ms(event_time) // 1000 AS time_s, coalesce(play_time_ms, -1) AS play_ms,
            coalesce(i.duration_ms, -1) AS duration_ms, CAST({mask} AS BIGINT) AS label, {positive("i.")} AS positive
            FROM read_parquet({[str(partition_path(lake / "impressions", d) / PART) for d in days]}) i
            JOIN read_parquet('{items}') k ON i.item_id = k.item_id"""
        )
        today = f"SELECT DISTINCT user_id FROM read_parquet('{partition_path(lake / 'impressions', day) / PART}')"
        con.execute(f"DELETE FROM events WHERE user_id NOT IN ({today})")
        queries = {
            "user_static": f"""SELECT user_id, [CAST(user_id % 7 AS BIGINT), 3, user_id % 5] AS static_codes
                FROM read_parquet('{users}') SEMI JOIN ({today}) USING (user_id)""",
            "user_seen": "SELECT user_id, list(item_id ORDER BY ms) AS seen_item_id FROM events GROUP BY user_id",
        }
        for table in (table for table in TABLES if table.prefix):
            which = "WHERE positive" if table.prefix == "positive" else ""
            last = f"QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY ms DESC) <= {table.max_length}"
            lists = ", ".join(f"list({f} ORDER BY ms) AS {table.prefix}_{f}" for f in EVENT_FIELDS)
            queries[table.name] = f"SELECT user_id, {lists} FROM (SELECT * FROM events {which} {last}) GROUP BY user_id"
        for name, query in queries.items():
            rows = con.sql(f"SELECT * FROM ({query}) ORDER BY user_id").to_arrow_table()
            stamps = pa.array([end] * len(rows), pa.timestamp("ms", "UTC"))
            schema = next(table for table in TABLES if table.name == name).schema
            rows = rows.add_column(1, "event_timestamp", stamps).cast(schema)
            write_partition(partition_path(features / name, day), rows)
