"""KuaiRand in its official CSV layout, Pure, 1K and 27K, plain or gzip: Gao et al., CIKM 2022.

| read | rows in Pure, 1K, 27K | what becomes of it |
|---|---|---|
| log_standard_*.csv (27K: in parts) | 1.4 M, 11.7 M, 322 M | impressions; read in a stream, day by day |
| video_features_basic_*.csv | 7,583, 4.4 M, 32 M | items |
| user_features_*.csv | 27,285, 1,000, 27,285 | users |
| history_*_last50.parquet, when there | | history without a clock |

The files lie in the folder itself or in its `data/`, as the official archives unpack.
Not read: video_features_statistic, whose aggregates span the whole period and so leak the future, and log_random, whose
exposure is another policy's. `date` is the log day, in Asia/Shanghai; `tab` becomes the surface.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import duckdb

from datasets.adapters.base import Adapter
from datasets.adapters.csv_files import quoted
from datasets.contract import LABELS
from datasets.errors import DataError

SIGNALS = {name: name for name in LABELS} | {"is_long_view": "long_view"}
LOG = {"user_id": "BIGINT", "video_id": "BIGINT", "date": "INTEGER", "time_ms": "BIGINT", "play_time_ms": "BIGINT"}
LOG |= {"duration_ms": "BIGINT", "tab": "VARCHAR"} | dict.fromkeys(SIGNALS.values(), "TINYINT")
VIDEOS = {
    "video_id": "BIGINT",
    "author_id": "BIGINT",
    "upload_dt": "DATE",
    "video_duration": "DOUBLE",
    "tag": "VARCHAR",
}
RANGES = ("follow_user_num_range", "fans_user_num_range", "friend_user_num_range", "register_days_range")
FLAGS = ("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author")
USER_COLUMNS = (*FLAGS, *RANGES, *(f"onehot_feat{i}" for i in range(18)))


class KuaiRand(Adapter):
    """A folder of the official KuaiRand CSV files."""

    name = "kuairand"
    layout = (
        "KuaiRand CSV (Pure, 1K, 27K): log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv, or .csv.gz"
    )
    timezone = "Asia/Shanghai"

    @classmethod
    def matches(cls, source: Path) -> bool:
        return all(_files(source, stem) for stem in ("log_standard", "user_features", "video_features_basic"))

    def files(self, day: date) -> list[Path]:
        found = _files(self.source, "log_standard")
        names = [file.name.removesuffix(".gz") for file in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"{self.source} has {', '.join(sorted(twice))} plain and as .gz: remove one of the two")
        return found

    def days(self, con: duckdb.DuckDBPyConnection) -> list[date]:
        found = con.execute(f"SELECT DISTINCT date FROM ({self._log()}) ORDER BY date").fetchall()
        texts = [str(row[0]) for row in found]
        try:
            return [datetime.strptime(text, "%Y%m%d").date() for text in texts]
        except ValueError:
            raise DataError(f"{self.source}: the log's column 'date' holds {texts}: write days as 20220425") from None

    def impressions(self, con: duckdb.DuckDBPyConnection, days: list[date]) -> str:
        signals = ", ".join(f"{column} AS {name}" for name, column in SIGNALS.items())
        wanted = ", ".join(day.strftime("%Y%m%d") for day in days)
        return f"""SELECT CAST(strptime(CAST(date AS VARCHAR), '%Y%m%d') AS DATE) AS dt, user_id, video_id AS item_id,
            epoch_ms(time_ms) AS event_time, CAST(NULL AS VARCHAR) AS request_id, CAST(NULL AS INTEGER) AS position,
            play_time_ms, duration_ms, {signals}, tab AS surface FROM ({self._log()}) WHERE date IN ({wanted})"""

    def items(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        videos = self.scan(_files(self.source, "video_features_basic"), VIDEOS, ("video_id",))
        return f"""SELECT video_id AS item_id, author_id,
            CAST(upload_dt AS TIMESTAMP) - INTERVAL 8 HOUR AS upload_time,
            CAST(round(video_duration) AS BIGINT) AS duration_ms,
            CASE WHEN tag IS NOT NULL THEN CAST(string_split(tag, ',') AS INTEGER[]) END AS tags,
            CAST(NULL AS VARCHAR) AS caption, CAST(NULL AS VARCHAR) AS asr, CAST(NULL AS VARCHAR) AS ocr,
            CAST(NULL AS VARCHAR) AS cover_uri, CAST(NULL AS VARCHAR[]) AS frame_uris,
            CAST(NULL AS FLOAT[]) AS content_embedding FROM ({videos})"""

    def users(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        columns = {"user_id": "BIGINT"} | dict.fromkeys(USER_COLUMNS, "VARCHAR")
        return self.scan(_files(self.source, "user_features"), columns, ("user_id",))

    def history(self, con: duckdb.DuckDBPyConnection) -> str | None:
        files = _files(self.source, "history", "_last50.parquet")
        if not files:
            return None
        known = {"is_long_view": "long_view", "is_like": "is_like"}
        signals = ", ".join(f"{known.get(name, 'CAST(NULL AS TINYINT)')} AS {name}" for name in LABELS)
        names = ", ".join(quoted(str(file)) for file in files)
        return f"SELECT user_id, video_id AS item_id, pos, {signals} FROM read_parquet([{names}])"

    def _log(self) -> str:
        return self.scan(self.files(date.min), LOG, ("date",))


def _files(source: Path, stem: str, *endings: str) -> list[Path]:
    """The files of a table, in the folder or its `data/`; the parts of 27K in their order."""
    endings = endings or (".csv", ".csv.gz")
    found = [f for folder in (source, source / "data") for f in folder.glob(f"{stem}_*") if f.name.endswith(endings)]
    return sorted(found)
