"""Materialization and online reads, on SQLite and on Redis: explicit intervals, never back in time, mended days."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from datasets.errors import DataError
from feature_repo.online import FeatureStoreError, OnlineFeatures
from feature_repo.services import SERVICE
from feature_repo.store import apply, materialize, open_store
from feature_repo.views import EVENT_VIEWS, VIEW_COLUMNS
from tests.feature_repo.conftest import DAYS, STATIC_FEATURES, STRANGERS, USERS, end_of, newest, write_days, write_views

START = end_of(DAYS[0]) - timedelta(days=1)


def start_of(day):
    """Just after the snapshot of the day before."""
    return end_of(day) - timedelta(hours=23)


@pytest.fixture
def local(folders, tmp_path):
    """The session's feature tables with an online store of the test's own."""
    apply(features=folders[0], feature_store=tmp_path / "store")
    return {"features": folders[0], "feature_store": tmp_path / "store"}


@pytest.fixture
def fresh(folders, tmp_path, online_profile):
    """The same on SQLite and on Redis."""
    apply(features=folders[0], feature_store=tmp_path / "store", profile=online_profile)
    return {"features": folders[0], "feature_store": tmp_path / "store", "profile": online_profile}


def assert_as_of(fresh: dict, until: datetime, users=USERS) -> None:
    online = OnlineFeatures(**fresh)
    expected_rows = {view: newest(fresh["features"], view, until) for view in VIEW_COLUMNS}
    for user in users:
        found = online.read(user)
        rows = {view: by_user.get(user) for view, by_user in expected_rows.items()}
        assert found.known == (rows["user_seen"] is not None)
        if not found.known:
            continue
        assert found.static.tolist() == rows["user_static"]["static_codes"]
        assert found.seen.tolist() == rows["user_seen"]["seen_item_id"]
        assert found.feature_time_s == int(rows["user_seen"]["event_timestamp"].timestamp())
        for view, prefix in EVENT_VIEWS.items():
            events = getattr(found, prefix)
            expected = [] if rows[view] is None else list(zip(*(rows[view][c] for c in VIEW_COLUMNS[view])))
            assert events.dtype == np.int64
            assert events.shape == (len(expected), 7)
            assert [tuple(event) for event in events.tolist()] == expected


def test_the_newest_row_in_the_interval_is_served(fresh):
    done = materialize(**fresh, start=START, end=end_of(DAYS[3]))
    assert done["users"]["user_seen"] > done["users"]["user_positive"] > 0
    assert_as_of(fresh, end_of(DAYS[3]))
    done = materialize(**fresh, start=end_of(DAYS[3]), end=end_of(DAYS[4]))
    assert_as_of(fresh, end_of(DAYS[4]))
    record = json.loads((fresh["feature_store"] / "materialized.json").read_text())["intervals"]
    assert [i["end"] for i in record] == [end_of(DAYS[3]).isoformat(), end_of(DAYS[4]).isoformat()]


def test_an_earlier_day_again_does_not_go_back_in_time(fresh):
    materialize(**fresh, start=START, end=end_of(DAYS[5]))
    done = materialize(**fresh, start=end_of(DAYS[1]), end=end_of(DAYS[2]))
    assert done["online_until"] == end_of(DAYS[5]).isoformat()
    assert_as_of(fresh, end_of(DAYS[5]))


def test_days_in_any_order_and_again(fresh):
    """Whatever the order of single days, and whichever is run twice, the newest row of each user is served."""
    for i in np.random.default_rng(3).permutation([0, 1, 2, 3, 4, 5, 2, 5, 0]):
        materialize(**fresh, start=end_of(DAYS[i]) - timedelta(days=1), end=end_of(DAYS[i]))
    assert_as_of(fresh, end_of(DAYS[5]))


def test_a_mended_day_is_served(tmp_path, online_profile):
    """A day written again with other values replaces what it served (Feast's Redis store would not); a newer stays."""
    where = {"features": tmp_path / "features", "feature_store": tmp_path / "store", "profile": online_profile}
    write_days(where["features"], np.random.default_rng(6))
    apply(**where)
    materialize(**where, start=START, end=end_of(DAYS[1]))
    keys, seen = [(1, end_of(DAYS[1])), (2, end_of(DAYS[1]))], {1: [7], 2: [8]}
    write_views(where["features"], DAYS[1], keys, seen, np.random.default_rng(7))
    write_views(where["features"], DAYS[2], [(2, end_of(DAYS[2]))], seen, np.random.default_rng(8))
    materialize(**where, start=end_of(DAYS[1]), end=end_of(DAYS[2]))
    materialize(**where, start=start_of(DAYS[1]), end=end_of(DAYS[1]))
    assert OnlineFeatures(**where).read(1).seen.tolist() == seen[1]
    assert_as_of(where, end_of(DAYS[2]), users=[1, 2])


def test_feast_reads_what_we_read(fresh):
    """Feast's own call, and so its server, gives the same lists as our direct read."""
    materialize(**fresh, start=START, end=end_of(DAYS[5]))
    store = open_store(**fresh)
    users = [*USERS, *STRANGERS]
    rows = [{"user_id": user} for user in users]
    answer = store.get_online_features(features=store.get_feature_service(SERVICE), entity_rows=rows).to_dict()
    for i, (user, found) in enumerate(zip(users, OnlineFeatures(**fresh).read_many(users))):
        assert answer["user_id"][i] == user
        assert (answer["seen_item_id"][i] or []) == found.seen.tolist()
        assert (answer["static_codes"][i] or []) == found.static.tolist()
        for view, prefix in EVENT_VIEWS.items():
            assert [answer[c][i] or [] for c in VIEW_COLUMNS[view]] == getattr(found, prefix).T.tolist()


def test_a_killed_write_can_be_run_again(fresh):
    """Feast marks a view while it is written; a process that died there must not block the day."""
    from feast.feature_view import FeatureViewState

    store = open_store(**fresh)
    view = store.get_feature_view("user_seen")
    view.state = FeatureViewState.MATERIALIZING
    store.registry.apply_feature_view(view, store.project, commit=True)
    apply(**fresh)
    materialize(**fresh, start=START, end=end_of(DAYS[5]))
    assert_as_of(fresh, end_of(DAYS[5]), users=[1, 2, 3])


def test_unknown_users(fresh):
    materialize(**fresh, start=START, end=end_of(DAYS[0]))
    for user in (*STRANGERS, -1, 2**63 - 1):
        found = OnlineFeatures(**fresh).read(user)
        assert not found.known
        assert found.feature_time_s == 0
        assert [len(x) for x in (found.static, found.short, found.positive, found.lifelong, found.seen)] == [0] * 5
        assert found.short.shape == (0, 7)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (datetime(2022, 4, 25), datetime(2022, 4, 26, tzinfo=UTC), "no time zone"),
        (datetime(2022, 4, 26, tzinfo=UTC), datetime(2022, 4, 26, tzinfo=UTC), "is empty"),
        (datetime(2022, 4, 26, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC), "in the future"),
        (datetime(2021, 4, 26, tzinfo=UTC), datetime(2021, 4, 27, tzinfo=UTC), "no feature row"),
    ],
)
def test_bad_intervals_are_refused(local, start, end, message):
    with pytest.raises(DataError, match=message):
        materialize(**local, start=start, end=end)
    assert not (local["feature_store"] / "materialized.json").exists()
    assert not OnlineFeatures(**local).read(1).known


def test_a_failing_store_is_one_error_and_heals(local):
    fresh = local
    materialize(**fresh, start=START, end=end_of(DAYS[5]))
    online = OnlineFeatures(**fresh)
    assert online.read(1).static.shape == (STATIC_FEATURES,)
    with sqlite3.connect(fresh["feature_store"] / "online.db") as connection:
        connection.execute("ALTER TABLE onerec_user_seen RENAME TO away")
    with pytest.raises(FeatureStoreError) as error:
        online.read(1)
    assert str(error.value) == "the features of 1 user cannot be read: OperationalError"  # logged: it names nobody
    with sqlite3.connect(fresh["feature_store"] / "online.db") as connection:
        connection.execute("ALTER TABLE away RENAME TO onerec_user_seen")
    assert online.read(1).known
    with pytest.raises(FeatureStoreError, match=r"holds no registry\.db"):
        OnlineFeatures(fresh["features"], fresh["feature_store"] / "nowhere").read(1)


def test_tables_must_exist(tmp_path):
    write_days(tmp_path / "features", np.random.default_rng(2))
    apply(features=tmp_path / "elsewhere", feature_store=tmp_path / "store")
    with pytest.raises(DataError, match="there is no partition at"):
        materialize(features=tmp_path / "elsewhere", feature_store=tmp_path / "store", start=START, end=end_of(DAYS[5]))
    with pytest.raises(DataError, match="apply it again"):
        materialize(features=tmp_path / "features", feature_store=tmp_path / "store", start=START, end=end_of(DAYS[5]))
