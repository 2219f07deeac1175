"""Live events: a click changes what is served online at once, and neither repeats nor materializations disturb it."""

from __future__ import annotations

import dataclasses
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.contract import ITEMS, LABELS
from datasets.errors import DataError
from datasets.partitions import PART, partition_path, write_partition
from feature_repo.live import merge
from feature_repo.online import OnlineFeatures
from feature_repo.push import LiveEvent, LiveEvents
from feature_repo.store import apply, materialize
from feature_repo.views import LIVE_LEN, SHORT_LEN, VIEW_COLUMNS
from tests.feature_repo.conftest import DAYS, end_of, newest

START = end_of(DAYS[0]) - timedelta(days=1)
CLICK, LIKE = 1 << LABELS.index("is_click"), 1 << LABELS.index("is_like")


@pytest.fixture
def where(folders, tmp_path, online_profile) -> dict:
    """A store on SQLite and on Redis that serves the days up to the fifth."""
    found = {"features": folders[0], "feature_store": tmp_path / "store", "profile": online_profile}
    apply(**found)
    materialize(**found, start=START, end=end_of(DAYS[4]))
    return found


def event(user: int, item: int, seconds: float, *labels: str, **more) -> LiveEvent:
    """An event so many seconds after the end of the fifth day."""
    time = end_of(DAYS[4]) + timedelta(seconds=seconds)
    return LiveEvent(user_id=user, item_id=item, event_time=time, labels=labels, **more)


def row(e: LiveEvent) -> tuple[int, ...]:
    return tuple(e.row())


def test_a_click_is_served_within_two_seconds(where, record_property):
    online, events = OnlineFeatures(**where), LiveEvents(**where)
    before = online.read(1)
    click = event(1, 777, 5.9, "is_click", play_ms=1200, author_id=3, tag=4, duration_ms=9000)
    begun = time.monotonic()
    assert events.push([click]) == 1
    after = online.read(1)
    record_property("seconds_from_push_to_read", time.monotonic() - begun)
    at = int(end_of(DAYS[4]).timestamp()) + 5
    assert after.short[-1].tolist() == [777, 3, 4, at, 1200, 9000, CLICK]
    assert after.short[:-1].tolist() == before.short[-(SHORT_LEN - 1) :].tolist()
    assert after.seen.tolist() == [*before.seen.tolist(), 777]
    assert (after.feature_time_s, after.known) == (at, True)
    assert after.static.tolist() == before.static.tolist()
    assert after.lifelong.tolist() == before.lifelong.tolist()
    assert OnlineFeatures(**where).read(2).short.tolist() == online.read(2).short.tolist()


def test_a_new_user_has_a_short_pathway(where):
    LiveEvents(**where).push([event(5000, 1, 1), event(5000, 2, 2)])
    found = OnlineFeatures(**where).read(5000)
    assert (found.short[:, 0].tolist(), found.seen.tolist(), found.known) == ([1, 2], [1, 2], True)
    assert len(found.static) == len(found.lifelong) == 0


def test_repeats_order_and_more_feedback(where):
    """A repeated push changes nothing, later feedback joins the event it belongs to, late events find their place."""
    events = LiveEvents(**where)
    shown, clicked, liked = event(3, 9, 50), event(3, 9, 50, "is_click", play_ms=5), event(3, 9, 50, "is_like")
    for push in ([clicked], [event(3, 8, 60)], [shown], [liked, event(3, 7, 40)], [clicked]):
        events.push(push)
    found = OnlineFeatures(**where).read(3)
    assert found.short[-3:, 0].tolist() == [7, 9, 8]
    assert found.short[-2, -1] == CLICK | LIKE
    assert found.short[-2, 4] == 5
    assert len(set(found.seen[-3:].tolist())) == 3


def test_only_the_newest_are_kept(where):
    events = LiveEvents(**where)
    events.push([event(4, i, i) for i in range(LIVE_LEN + 5)])
    found = OnlineFeatures(**where).read(4)
    assert found.short[:, 0].tolist() == list(range(LIVE_LEN + 5 - SHORT_LEN, LIVE_LEN + 5))


def test_materializing_keeps_what_is_newer_and_takes_over_what_is_older(where):
    """The tables of a day replace the events of that day; events after its end stay; older days change nothing."""
    day = timedelta(days=1).total_seconds()
    user = pq.read_table(partition_path(where["features"] / "user_short", DAYS[5]) / PART)["user_id"][0].as_py()
    during, after = event(user, 700, day / 2, "is_click"), event(user, 701, day + 3, "is_like")
    LiveEvents(**where).push([during, after])
    online = OnlineFeatures(**where)
    assert [tuple(e) for e in online.read(user).short[-2:].tolist()] == [row(during), row(after)]
    materialize(**where, start=end_of(DAYS[1]), end=end_of(DAYS[2]))
    assert [tuple(e) for e in online.read(user).short[-2:].tolist()] == [row(during), row(after)]
    materialize(**where, start=end_of(DAYS[4]), end=end_of(DAYS[5]))
    found, plain = online.read(user), newest(where["features"], "user_short", end_of(DAYS[5]))[user]
    assert plain["event_timestamp"] == end_of(DAYS[5])
    tables = list(zip(*(plain[column] for column in VIEW_COLUMNS["user_short"])))
    assert [tuple(e) for e in found.short.tolist()] == [*tables, row(after)][-SHORT_LEN:]
    assert 700 not in found.seen
    assert found.seen[-1] == 701


def test_concurrent_pushes_lose_nothing(where):
    """Stores of their own, as processes have, and a shared one. Both locks hold within a process as between two."""
    shared = LiveEvents(**where)

    def work(number: int) -> None:
        own = shared if number % 2 else LiveEvents(**where)
        for i in range(6):
            own.push([event(6, 100 + 10 * number + i, 10 * number + i), event(7 + number, 1, i)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = OnlineFeatures(**where).read(6).seen.tolist()
    assert sorted(seen[-24:]) == sorted(100 + 10 * n + i for n in range(4) for i in range(6))


def test_the_items_table_fills_what_a_client_does_not_know(folders, tmp_path):
    apply(features=folders[0], feature_store=tmp_path / "store")
    columns = {field.name: pa.nulls(2, field.type) for field in ITEMS}
    columns |= {"item_id": pa.array([1, 2]), "author_id": pa.array([50, -1]), "duration_ms": pa.array([900, None])}
    columns["tags"] = pa.array([[7, 8], None], pa.list_(pa.int32()))
    write_partition(tmp_path / "items", pa.table(columns, schema=ITEMS))
    events = LiveEvents(folders[0], tmp_path / "store", items=tmp_path / "items")
    events.push([event(1, 1, 1), event(1, 2, 2), event(1, 3, 3), event(1, 1, 4, tag=5)])
    found = OnlineFeatures(folders[0], tmp_path / "store").read(1).short
    assert found[:, 1].tolist() == [50, -1, -1, 50]
    assert found[:, 2].tolist() == [7, -1, -1, 5]
    assert found[:, 5].tolist() == [900, -1, -1, 900]
    with pytest.raises(DataError, match="holds no items"):
        LiveEvents(folders[0], tmp_path / "store", items=tmp_path)


def test_what_a_client_may_get_wrong(tmp_path):
    good = event(1, 2, 3)
    with pytest.raises(DataError, match="no time zone"):
        dataclasses.replace(good, event_time=datetime(2026, 1, 1))
    with pytest.raises(DataError, match="is_loved is no label: use is_click"):
        dataclasses.replace(good, labels=("is_click", "is_loved"))
    with pytest.raises(DataError, match="item_id is"):
        dataclasses.replace(good, item_id=1 << 63)
    with pytest.raises(DataError, match="before 1970"):
        dataclasses.replace(good, event_time=datetime(1969, 1, 1, tzinfo=UTC))
    with pytest.raises(DataError, match="holds no registry"):
        LiveEvents(Path("nowhere"), tmp_path)


def test_merging_does_not_depend_on_order():
    rng = np.random.default_rng(5)
    events = np.concatenate([rng.integers(0, 5, (200, 6)), rng.integers(0, 256, (200, 1))], 1)
    empty = np.zeros((0, 7), np.int64)
    whole = merge(empty, events)
    for _ in range(5):
        order, cut = rng.permutation(200), int(rng.integers(0, 200))
        assert np.array_equal(merge(merge(empty, events[order[:cut]]), events[order[cut:]]), whole)
    assert len(whole) == len({(e[0], e[3]) for e in events.tolist()})
