"""KuaiRand in its official CSV layout (Pure, 1K and 27K): Gao et al., CIKM 2022.

Read: log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv and, when there, history_*_last50.parquet.
Not read: video_features_statistic, whose aggregates span the whole period and so leak the future, and log_random, whose
exposure is another policy's. `date` is the log day, in Asia/Shanghai; `tab` becomes the surface.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import duckdb

from datasets.adapters.base import Adapter
from datasets.adapters.csv_files import load_csv, quoted
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
    layout = "KuaiRand CSV: log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv"
    timezone = "Asia/Shanghai"

    @classmethod
    def matches(cls, source: Path) -> bool:
        return all(
            any(source.glob(f"{stem}_*.csv")) for stem in ("log_standard", "user_features", "video_features_basic")
        )

    def files(self, day: date) -> list[Path]:
        return sorted(self.source.glob("log_standard_*.csv"))

    def days(self, con: duckdb.DuckDBPyConnection) -> list[date]:
        load_csv(con, "kuairand_log", self.files(date.min), LOG, required=("date",))
        found = [str(row[0]) for row in con.execute("SELECT DISTINCT date FROM kuairand_log ORDER BY date").fetchall()]
        try:
            return [datetime.strptime(text, "%Y%m%d").date() for text in found]
        except ValueError:
            raise DataError(f"{self.source}: the log's column 'date' holds {found}: write days as 20220425") from None

    def impressions(self, con: duckdb.DuckDBPyConnection, days: list[date]) -> str:
        signals = ", ".join(f"{column} AS {name}" for name, column in SIGNALS.items())
        wanted = ", ".join(day.strftime("%Y%m%d") for day in days)
        return f"""SELECT CAST(strptime(CAST(date AS VARCHAR), '%Y%m%d') AS DATE) AS dt, user_id, video_id AS item_id,
            epoch_ms(time_ms) AS event_time, CAST(NULL AS VARCHAR) AS request_id, CAST(NULL AS INTEGER) AS position,
            play_time_ms, duration_ms, {signals}, tab AS surface FROM kuairand_log WHERE date IN ({wanted})"""

    def items(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        files = sorted(self.source.glob("video_features_basic_*.csv"))
        load_csv(con, "kuairand_videos", files, VIDEOS, required=("video_id",))
        return """SELECT video_id AS item_id, coalesce(author_id, -1) AS author_id,
            CAST(upload_dt AS TIMESTAMP) - INTERVAL 8 HOUR AS upload_time,
            CAST(round(video_duration) AS BIGINT) AS duration_ms,
            CASE WHEN tag IS NOT NULL THEN CAST(string_split(tag, ',') AS INTEGER[]) END AS tags,
            CAST(NULL AS VARCHAR) AS caption, CAST(NULL AS VARCHAR) AS asr, CAST(NULL AS VARCHAR) AS ocr,
            CAST(NULL AS VARCHAR) AS cover_uri, CAST(NULL AS VARCHAR[]) AS frame_uris,
            CAST(NULL AS FLOAT[]) AS content_embedding FROM kuairand_videos"""

    def users(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        files = sorted(self.source.glob("user_features_*.csv"))
        columns = {"user_id": "BIGINT"} | dict.fromkeys(USER_COLUMNS, "VARCHAR")
        load_csv(con, "kuairand_users", files, columns, required=("user_id",))
        return "SELECT * FROM kuairand_users"

    def history(self, con: duckdb.DuckDBPyConnection) -> str | None:
        files = sorted(self.source.glob("history_*_last50.parquet"))
        if not files:
            return None
        known = {"is_long_view": "long_view", "is_like": "is_like"}
        signals = ", ".join(f"{known.get(name, 'CAST(NULL AS TINYINT)')} AS {name}" for name in LABELS)
        names = ", ".join(quoted(str(file)) for file in files)
        return f"SELECT user_id, video_id AS item_id, pos, {signals} FROM read_parquet([{names}])"
