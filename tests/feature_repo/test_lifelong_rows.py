"""Who is clustered anew, and what becomes of those who are not; ranges of users and the rest of the configuration."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import contract
from datasets.partitions import PART, partition_path, write_partition
from feature_repo.config import PathwaysConfig
from feature_repo.lifelong_rows import STATE
from feature_repo.pathways import VIEWS, Pathways

DAYS = [date(2022, 5, 1) + timedelta(days=i) for i in range(3)]
START = datetime(2022, 5, 1, tzinfo=UTC)
PER_DAY = {0: (40, 3, 30), 1: (40, 8, 3), 2: (40, 0, 8), 3: (100, 8, 0), 4: (2, 1, 1)}
"""User to events a day. With 8 events and 10 %: 0 is redone on the third day only, 1 on the second, ..."""
CONFIG = PathwaysConfig(redo_events=8, redo_share=0.1)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake, rng = tmp_path_factory.mktemp("rows") / "lake", np.random.default_rng(5)
    for number, day in enumerate(DAYS):
        rows = [
            {
                "user_id": user,
                "item_id": int(rng.integers(0, 200)),
                "event_time": START + timedelta(days=number, minutes=i),
                "play_time_ms": 1000 * i,
                "is_like": int(rng.random() < 0.5),
            }
            for user, counts in PER_DAY.items()
            for i in range(counts[number])
        ]
        write_partition(
            partition_path(lake / "impressions", day), pa.Table.from_pylist(rows, schema=contract.IMPRESSIONS)
        )
    items = [{"item_id": i, "author_id": i % 9, "tags": [i % 20]} for i in range(200)]
    write_partition(partition_path(lake / "items", DAYS[-1]), pa.Table.from_pylist(items, schema=contract.ITEMS))
    users = pa.table({"user_id": pa.array(list(PER_DAY), pa.int64())})
    write_partition(partition_path(lake / "users", DAYS[-1]), users)
    return lake


def write(lake: Path, features: Path, days: list[date], config: PathwaysConfig = CONFIG) -> Path:
    with Pathways(lake=lake, features=features, day=DAYS[-1], config=config) as pathways:
        assert (len(list(pathways._buckets())) > 1) == (config.bucket_events < 1000), "cut where asked, and only there"
        for day in days:
            pathways.write_views(day)
            start = pathways.end_of(day - timedelta(days=1))
            pathways.write_labels("labels", day, [(start, start, None, day)])
    return features


def rows(features: Path, view: str, day: date) -> dict[int, dict]:
    table = pq.read_table(partition_path(features / view, day) / PART, partitioning=None)
    return {row["user_id"]: row for row in table.to_pylist()}


def events(row: dict) -> list[tuple]:
    return list(zip(*(row[f"lifelong_{field}"] for field in contract.EVENT_FIELDS)))


@pytest.fixture(scope="module")
def built(lake: Path) -> Path:
    return write(lake, lake.parent / "features", DAYS)


def test_only_users_with_enough_new_events_are_clustered_anew(built: Path, lake: Path) -> None:
    states = [{u: r["clustered"] for u, r in rows(built, STATE, day).items()} for day in DAYS]
    assert states[0] == {0: 40, 1: 40, 2: 40, 3: 100, 4: 2}
    # User 3 has 8 new events, which are less than a tenth of its 100; user 4 never gets 8.
    assert states[1] == {0: 40, 1: 48, 3: 100, 4: 2}
    assert states[2] == {0: 73, 1: 48, 2: 48, 4: 2}
    full = write(lake, lake.parent / "full", [DAYS[2]])
    for user in (0, 2):
        assert rows(built, "user_lifelong", DAYS[2])[user] == rows(full, "user_lifelong", DAYS[2])[user]


def test_others_keep_their_rows_and_get_their_new_events_behind(built: Path) -> None:
    kept = 0
    for before, day, users in ((DAYS[0], DAYS[1], (0, 3, 4)), (DAYS[1], DAYS[2], (1, 4))):
        for user in users:
            old, new = (events(rows(built, "user_lifelong", d)[user]) for d in (before, day))
            count = PER_DAY[user][DAYS.index(day)]
            short = rows(built, "user_short", day)[user]
            appended = list(zip(*(short[f"short_{field}"][-count:] for field in contract.EVENT_FIELDS)))
            assert new == old + appended
            kept += 1
    assert kept == 5


def test_a_day_run_again_or_after_a_later_one_gives_the_same_bytes(built: Path, lake: Path) -> None:
    again = lake.parent / "again"
    shutil.copytree(built, again)
    write(lake, again, [DAYS[1], DAYS[2], DAYS[1]])
    for name in (*VIEWS, STATE):
        for day in DAYS:
            at = partition_path(Path(name), day) / PART
            assert (again / at).read_bytes() == (built / at).read_bytes()


@pytest.mark.parametrize("grain", ["day", "session"])
def test_ranges_of_users_change_no_row(built: Path, lake: Path, grain: str) -> None:
    whole = built if grain == "day" else write(lake, lake.parent / "s", DAYS, PathwaysConfig(grain=grain))
    settings = {"redo_events": 8} if grain == "day" else {"grain": grain}
    cut = write(lake, lake.parent / f"cut_{grain}", DAYS, PathwaysConfig(bucket_events=60, **settings))
    for name in (*VIEWS, STATE, "labels"):
        for day in DAYS:
            at = partition_path(Path(name), day) / PART
            assert pq.read_table(cut / at, partitioning=None).equals(pq.read_table(whole / at, partitioning=None))


def test_the_positive_rule_and_the_lengths_are_configuration(built: Path, lake: Path) -> None:
    config = PathwaysConfig(positive_labels=("is_follow",), short_len=3, lifelong_len=5)
    other = write(lake, lake.parent / "other", DAYS[:1], config)
    assert rows(other, "user_positive", DAYS[0]) == {} != rows(built, "user_positive", DAYS[0])
    for user, row in rows(other, "user_short", DAYS[0]).items():
        assert row["short_item_id"] == rows(built, "user_short", DAYS[0])[user]["short_item_id"][-3:]
        assert (
            events(rows(other, "user_lifelong", DAYS[0])[user])
            == events(rows(built, "user_lifelong", DAYS[0])[user])[-5:]
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"short_len": 0}, "short_len is 0; it must be at least 1"),
        ({"redo_share": -0.1}, "redo_share is -0.1; it must be at least 0"),
        ({"grain": "hour"}, "choose 'day' or 'session'"),
        ({"positive_labels": ("is_liked",)}, "choose one or more of is_click"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathwaysConfig(**wrong)
