"""Pathway tables and the day's features against a brute-force reading of the same log."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import contract
from datasets.partitions import partition_path, write_partition
from feature_repo.build import build_features
from feature_repo.config import PathwaysConfig
from feature_repo.pathways import Pathways
from feature_repo.transforms import HISTORY_SLICES

SHORT_LEN = PathwaysConfig().short_len

FIRST = date(2022, 5, 1)
DAYS = [FIRST + timedelta(days=i) for i in range(4)]
ZONE = "Asia/Shanghai"
ITEMS = 30


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=8)


def write_lake(lake: Path, days: list[date], history: bool = True) -> list[dict]:
    """A random log of ten users, of which user 9 comes only on the last day; returns its events in order."""
    rng = np.random.default_rng(3)
    events = []
    for day in days:
        rows = []
        for _ in range(60):
            user = int(rng.integers(0, 9 if day != DAYS[-1] else 10))
            time = midnight(day) + timedelta(seconds=int(rng.integers(0, 86400)))
            labels = {name: int(rng.random() < 0.3) if name != "is_hate" else None for name in contract.LABELS}
            row = {"user_id": user, "item_id": int(rng.integers(0, ITEMS)), "event_time": time, "play_time_ms": 1500}
            rows.append({**row, **labels, "duration_ms": None if rng.random() < 0.5 else 4000})
        rows.sort(key=lambda r: (r["event_time"], r["user_id"], r["item_id"]))
        write_partition(
            partition_path(lake / "impressions", day), pa.Table.from_pylist(rows, schema=contract.IMPRESSIONS)
        )
        events += [{**r, "dt": day} for r in rows]
        items = [{"item_id": i, "author_id": i % 5, "duration_ms": 9000, "tags": [i % 3]} for i in range(ITEMS)]
        write_partition(partition_path(lake / "items", day), pa.Table.from_pylist(items, schema=contract.ITEMS))
        users = pa.table(
            {"user_id": pa.array(range(10), pa.int64()), "city": pa.array(["a", None] * 5), "age": [1] * 10}
        )
        write_partition(partition_path(lake / "users", day), users)
    if history:
        old = [{"user_id": u, "item_id": i, "pos": i, "is_like": i % 2} for u in range(3) for i in range(7)]
        write_partition(lake / "history", pa.Table.from_pylist(old, schema=contract.HISTORY))
    return events


def ingest_of(day: date, evaluation_day: date | None) -> dict:
    return {"timezone": ZONE, "evaluation_day": evaluation_day and evaluation_day.isoformat(), "day": day.isoformat()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """The first three days at bootstrap, evaluated on the fourth; then the fourth, which holds its last hours back."""
    base = tmp_path_factory.mktemp("pathways")
    events = write_lake(base / "lake", DAYS)
    where = {"lake": base / "lake", "features": base / "features", "feature_store": base / "store"}
    first = build_features(**where, day="2022-05-03", ingest=ingest_of(DAYS[2], DAYS[3]), previous=None, bootstrap=True)
    second = build_features(**where, day="2022-05-04", ingest=ingest_of(DAYS[3], None), previous=first, bootstrap=False)
    return base, events, first, second


def rows(path: Path) -> dict[tuple[int, datetime], dict]:
    return {(r["user_id"], r["event_timestamp"]): r for r in pq.read_table(path / "part-0.parquet").to_pylist()}


def test_short_pathway_equals_the_log(built) -> None:
    base, events, _, _ = built
    table = rows(partition_path(base / "features" / "user_short", DAYS[2]))
    active = {e["user_id"] for e in events if e["dt"] == DAYS[2]}
    assert {u for u, _ in table} == active and {t for _, t in table} == {midnight(DAYS[3])}
    for (user, _), row in table.items():
        mine = [e for e in events if e["user_id"] == user and e["dt"] <= DAYS[2]]
        mine.sort(key=lambda e: (e["event_time"], e["item_id"]))
        old = [(i, 0) for i in range(7)] if user < 3 else []
        wanted = (old + [(e["item_id"], int(e["event_time"].timestamp())) for e in mine])[-SHORT_LEN:]
        assert list(zip(row["short_item_id"], row["short_time_s"])) == wanted
        assert all(
            d == (9000 if t == 0 else d) and d in (4000, 9000)
            for d, t in zip(row["short_duration_ms"], row["short_time_s"])
        )
        assert row["short_author_id"] == [i % 5 for i in row["short_item_id"]]


def test_positive_and_seen_pathways_equal_the_log(built) -> None:
    base, events, _, _ = built
    positive = rows(partition_path(base / "features" / "user_positive", DAYS[1]))
    for (user, at), row in rows(partition_path(base / "features" / "user_seen", DAYS[1])).items():
        mine = [e for e in events if e["user_id"] == user and e["dt"] <= DAYS[1]]
        mine.sort(key=lambda e: (e["event_time"], e["item_id"]))
        old = list(range(7)) if user < 3 else []
        assert row["seen_item_id"] == old + [e["item_id"] for e in mine]
        liked = [i for i in old if i % 2] + [e["item_id"] for e in mine if any(e[x] for x in contract.POSITIVE_LABELS)]
        assert positive.get((user, at), {"positive_item_id": []})["positive_item_id"] == liked


def test_label_masks_tell_zero_from_unknown(built) -> None:
    base, _, _, _ = built
    label = next(iter(rows(partition_path(base / "features" / "labels", DAYS[0])).values()))
    assert set(label["label_known"]) == {255 - (1 << contract.LABELS.index("is_hate"))}
    old = rows(partition_path(base / "features" / "labels", FIRST - timedelta(days=1)))
    assert {k for row in old.values() for k in row["label_known"]} == {1 << contract.LABELS.index("is_like")}


def test_history_becomes_pseudo_days_without_a_clock(built) -> None:
    base, _, first, _ = built
    pseudo = [FIRST - timedelta(days=HISTORY_SLICES - i) for i in range(HISTORY_SLICES)]
    assert first["days"] == [d.isoformat() for d in [*pseudo, *DAYS[:3]]]
    shown = [rows(partition_path(base / "features" / "labels", d)) for d in pseudo]
    for user in range(3):
        items = [i for table in shown for (u, _), row in table.items() if u == user for i in row["item_id"]]
        assert items == list(range(7))


def test_training_context_ends_before_the_day(built) -> None:
    base, events, _, _ = built
    for day in DAYS[:3]:
        shown = pq.read_table(partition_path(base / "features" / "training", day) / "part-0.parquet").to_pylist()
        for row in shown:
            assert all(t < midnight(day).timestamp() for t in row["short_time_s"])
            before = sum(e["dt"] < day and e["user_id"] == row["user_id"] for e in events)
            assert len(row["seen_item_id"]) == before + (7 if row["user_id"] < 3 else 0)
            assert len(row["static_codes"]) == 2


def test_evaluation_is_the_next_day_with_context_as_of_the_end(built) -> None:
    base, events, first, _ = built
    assert first["held_back_from"] is None
    table = rows(partition_path(base / "features" / "evaluation", DAYS[2]))
    for (user, at), row in table.items():
        assert at == midnight(DAYS[3]) + timedelta(milliseconds=1)
        mine = sorted(
            (e for e in events if e["user_id"] == user and e["dt"] == DAYS[3]),
            key=lambda e: (e["event_time"], e["item_id"]),
        )
        assert row["item_id"] == [e["item_id"] for e in mine]
        assert all(t < midnight(DAYS[3]).timestamp() for t in row["short_time_s"])


def test_without_a_next_day_the_last_hours_are_held_back(built) -> None:
    base, events, _, second = built
    cutoff = datetime.fromisoformat(second["held_back_from"])
    trained = rows(partition_path(base / "features" / "training", DAYS[3]))
    held = rows(partition_path(base / "features" / "evaluation", DAYS[3]))
    today = [e for e in events if e["dt"] == DAYS[3]]
    assert sum(len(r["item_id"]) for r in trained.values()) == sum(e["event_time"] < cutoff for e in today)
    assert sum(len(r["item_id"]) for r in held.values()) == sum(e["event_time"] >= cutoff for e in today)
    for (user, _), row in held.items():
        assert len(row["seen_item_id"]) == (7 if user < 3 else 0) + sum(
            e["user_id"] == user and e["event_time"] < cutoff for e in events
        )
    online = {t for _, t in rows(partition_path(base / "features" / "user_seen", DAYS[3]))}
    assert online == {cutoff, midnight(DAYS[3] + timedelta(days=1))}


def test_held_back_rows_are_trained_on_the_day_after(built, tmp_path: Path) -> None:
    """What was held back from the third day when the fourth was missing belongs to the fourth day's training set."""
    events = write_lake(tmp_path / "lake", DAYS)
    where = {"lake": tmp_path / "lake", "features": tmp_path / "features", "feature_store": tmp_path / "store"}
    before = build_features(**where, day="2022-05-03", ingest=ingest_of(DAYS[2], None), previous=None, bootstrap=True)
    build_features(**where, day="2022-05-04", ingest=ingest_of(DAYS[3], None), previous=before, bootstrap=False)
    count = {}
    for day in DAYS:
        table = pq.read_table(partition_path(tmp_path / "features" / "training", day) / "part-0.parquet")
        count[day] = len(table["item_id"].combine_chunks().flatten())
    held = pq.read_table(partition_path(tmp_path / "features" / "evaluation", DAYS[3]) / "part-0.parquet")
    assert sum(count.values()) + len(held["item_id"].combine_chunks().flatten()) == len(events)


def test_same_input_same_bytes_whatever_was_there(built, tmp_path: Path) -> None:
    base, _, first, _ = built
    where = {"lake": base / "lake", "features": tmp_path / "features", "feature_store": tmp_path / "store"}
    stale = partition_path(tmp_path / "features" / "training", FIRST - timedelta(days=40))
    write_partition(stale, pa.table({"x": [1]}))
    again = build_features(**where, day="2022-05-03", ingest=ingest_of(DAYS[2], DAYS[3]), previous=None, bootstrap=True)
    assert again["written"] == first["written"] and not stale.exists()
    for name in first["written"]:
        assert (tmp_path / "features" / name).read_bytes() == (base / "features" / name).read_bytes()


def test_static_codes_tell_missing_from_known_and_columns_apart(built) -> None:
    base, _, _, _ = built
    with Pathways(lake=base / "lake", features=base / "unused", day=DAYS[2], timezone=ZONE) as pathways:
        codes = dict(zip(pathways.static["user_id"].to_pylist(), pathways.static["static_codes"].to_pylist()))
    assert codes[0] == codes[2] and codes[1] == codes[3] and codes[0][0] != codes[1][0]
    assert codes[0][0] != codes[0][1] and all(0 <= c < 8192 for row in codes.values() for c in row)
