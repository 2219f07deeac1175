"""Simulated logs rewritten in KuaiRand's official CSV layout, to run a whole day on it. Nobody in it is real."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parent / "datasets"))
from tiny_kuairand import ALL_USER_COLUMNS, LOG_COLUMNS, VIDEO_COLUMNS


def write_kuairand(simulated: Path, out: Path) -> Path:
    """The three official CSV files, from a folder that the simulator wrote."""
    out.mkdir(parents=True)
    days = []
    for folder in sorted((simulated / "impressions").glob("dt=*")):
        table = pa.concat_tables(pq.read_table(file, partitioning=None) for file in sorted(folder.glob("*.parquet")))
        date = pa.repeat(folder.name.removeprefix("dt=").replace("-", ""), len(table))
        time_ms = table["event_time"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        columns = {"video_id": table["item_id"], "date": date, "time_ms": time_ms, "long_view": table["is_long_view"]}
        days.append(pa.table({c: columns.get(c, _column(table, c)) for c in LOG_COLUMNS}))
    csv.write_csv(pa.concat_tables(days), out / "log_standard_simulated.csv")
    users, items = (_newest(simulated / table) for table in ("users", "items"))
    csv.write_csv(pa.table({c: _column(users, c) for c in ALL_USER_COLUMNS}), out / "user_features_simulated.csv")
    tags = pc.binary_join(items["tags"].cast(pa.list_(pa.string())), ",")
    columns = {
        "video_id": items["item_id"],
        "upload_dt": pc.strftime(items["upload_time"], "%Y-%m-%d"),
        "video_duration": items["duration_ms"],
        "tag": tags,
    }
    videos = pa.table({c: columns.get(c, _column(items, c)) for c in VIDEO_COLUMNS})
    csv.write_csv(videos, out / "video_features_basic_simulated.csv")
    return out


def _newest(folder: Path) -> pa.Table:
    return pq.read_table(sorted(folder.rglob("*.parquet"))[-1], partitioning=None)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    return table[name] if name in table.column_names else pa.repeat(0, len(table))
