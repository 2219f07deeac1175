"""A tiny KuaiRand folder in its official layout, built of rows that a test may change before they are written."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.adapters.kuairand import RANGES, USER_COLUMNS

DAYS = [date(2022, 4, 25), date(2022, 4, 26), date(2022, 4, 27)]
LOG_COLUMNS = [
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
    "is_rand",
    "tab",
]
VIDEO_COLUMNS = [
    "video_id",
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "visible_status",
    "video_duration",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
]
NUMBERS = [name.removesuffix("_range") for name in RANGES]
ALL_USER_COLUMNS = ["user_id", *USER_COLUMNS[:4], *NUMBERS, *RANGES, *USER_COLUMNS[8:]]


@dataclass
class KuaiRandFiles:
    """The rows of the files; `write` puts them into a folder. A day has 12 impressions of 4 users and 6 videos."""

    log: list[dict[str, Any]] = field(default_factory=list)
    users: list[dict[str, Any]] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        write_csv(folder / "log_standard_4_25_to_4_27_tiny.csv", LOG_COLUMNS, self.log)
        write_csv(folder / "user_features_tiny.csv", ALL_USER_COLUMNS, self.users)
        write_csv(folder / "video_features_basic_tiny.csv", VIDEO_COLUMNS, self.videos)
        pq.write_table(pa.Table.from_pylist(self.history), folder / "history_4_08_to_4_24_last50.parquet")
        return folder


def write_csv(file: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n", restval="0")
        writer.writeheader()
        writer.writerows(rows)


def time_ms(day: date, hour: float) -> int:
    """UTC milliseconds of an hour of a log day in Shanghai."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=8)
    return int((start + timedelta(hours=hour)).timestamp() * 1000)


def tiny_files() -> KuaiRandFiles:
    files = KuaiRandFiles()
    for day in DAYS:
        for number in range(12):
            files.log.append(
                {
                    "user_id": number % 4,
                    "video_id": number % 6,
                    "date": day.strftime("%Y%m%d"),
                    "time_ms": time_ms(day, 8 + number / 2),
                    "is_click": number % 2,
                    "long_view": int(number % 3 == 0),
                    "play_time_ms": 1000 * number,
                    "duration_ms": 20_000,
                    "tab": 1,
                }
            )
    files.users = [{"user_id": user, "user_active_degree": "full_active"} for user in range(4)]
    files.videos = [
        {"video_id": v, "author_id": 10 + v, "upload_dt": "2022-04-10", "video_duration": 20000.0, "tag": "3,7"}
        for v in range(6)
    ]
    files.history = [
        {"user_id": user, "pos": pos, "video_id": pos, "long_view": pos % 2, "is_like": 0}
        for user in range(3)
        for pos in range(4)
    ]
    return files
