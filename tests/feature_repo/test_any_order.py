"""Random event streams through both engines, against a plain model: the newest row at or before an instant.

A stream is a random sequence of steps: a day's tables are written (perhaps again, with other values), an interval is
materialized (in any order), events are pushed (late, repeated). Offline the model joins over the rows that lie in the
tables; online it keeps, for each user and view, the newest row that any step wrote, and lays the pushed events over it.
"""

from __future__ import annotations

import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.partitions import partition_path
from feature_repo.online import OnlineFeatures
from feature_repo.profiles import LocalProfile
from feature_repo.push import LiveEvent, LiveEvents
from feature_repo.services import SERVICE
from feature_repo.store import apply, materialize, open_store, quiet
from feature_repo.views import EVENT_VIEWS, SHORT_LEN, VIEW_COLUMNS
from tests.feature_repo.conftest import DAYS, end_of, write_table

ITEMS = USERS = range(4)
DAY_NUMBERS = range(4)
BEFORE = end_of(DAYS[0]) - timedelta(days=1)

tables = st.tuples(
    st.just("tables"), st.sampled_from(DAY_NUMBERS), st.sets(st.sampled_from(USERS), min_size=1), st.integers(0, 9)
)
fill = st.tuples(st.just("materialize"), st.sampled_from(DAY_NUMBERS), st.sampled_from(DAY_NUMBERS))
one_event = st.tuples(
    st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(-1, 4 * 24), st.sampled_from(["is_click", "is_like"])
)
push = st.tuples(st.just("push"), st.lists(one_event, min_size=1, max_size=4))
STEPS = st.lists(st.one_of(tables, fill, fill, push), min_size=2, max_size=9)


class Model:
    """What must be true, in plain Python."""

    def __init__(self) -> None:
        self.written: dict[int, dict[int, list[int]]] = {}  # day: {user: items of the user's row}
        self.online: dict[int, tuple[int, list[int]]] = {}  # user: (day, items)
        self.live: dict[int, dict[tuple[datetime, int], set[str]]] = {}

    def as_of(self, user: int, instant: datetime) -> list[int] | None:
        days = [day for day, rows in self.written.items() if user in rows and end_of(DAYS[day]) <= instant]
        return self.written[max(days)][user] if days else None

    def materialize(self, first: int, last: int) -> None:
        for day in range(first, last + 1):
            for user, items in self.written.get(day, {}).items():
                if user not in self.online or self.online[user][0] <= day:
                    self.online[user] = (day, items)

    def short(self, user: int) -> list[int]:
        day, items = self.online.get(user, (None, []))
        covered = BEFORE - timedelta(days=1) if day is None else end_of(DAYS[day])
        events = sorted(self.live.get(user, {}))
        return [*items, *(item for time, item in events if time >= covered)][-SHORT_LEN:]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(STEPS)
def test_any_stream(steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = {"features": Path(folder) / "features", "feature_store": Path(folder) / "store"}
        where["profile"] = LocalProfile()
        apply(**where)
        events, model = LiveEvents(**where), Model()
        for step in steps:
            _take(step, where, events, model)
        online = OnlineFeatures(**where)
        for user, found in zip(USERS, online.read_many(USERS)):
            assert found.short[:, 0].tolist() == model.short(user), (user, steps)
            row = model.online.get(user)
            assert found.positive[:, 0].tolist() == (row[1] if row else [])
        if model.written:
            _compare_offline(where, model)


def _take(step: tuple, where: dict, events: LiveEvents, model: Model) -> None:
    kind, *rest = step
    if kind == "tables":
        day, users, seed = rest
        rng = np.random.default_rng(seed)
        rows = {user: rng.integers(0, 99, rng.integers(0, 5)).tolist() for user in sorted(users)}
        model.written[day] = rows
        for view, columns in VIEW_COLUMNS.items():
            lists = {column: list(rows.values()) for column in columns}
            path = partition_path(where["features"] / view, DAYS[day])
            write_table(path, list(rows), [end_of(DAYS[day])] * len(rows), lists)
    elif kind == "materialize":
        first, last = sorted(rest)
        if any(model.written.get(day) for day in range(first, last + 1)):
            start = end_of(DAYS[first]) - timedelta(hours=1)
            materialize(**where, start=start, end=end_of(DAYS[last]))
            model.materialize(first, last)
    else:
        for user, item, hours, label in rest[0]:
            time = BEFORE + timedelta(hours=hours)
            model.live.setdefault(user, {}).setdefault((time, item), set()).add(label)
        events.push(
            LiveEvent(user_id=user, item_id=item, event_time=BEFORE + timedelta(hours=hours), labels=(label,))
            for user, item, hours, label in rest[0]
        )


def _compare_offline(where: dict, model: Model) -> None:
    """Every user at the end of each day, a millisecond before it and after it."""
    offsets = [timedelta(milliseconds=ms) for ms in (-1, 0, 1)]
    asked = [(user, end_of(DAYS[day]) + offset) for user in USERS for day in DAY_NUMBERS for offset in offsets]
    frame = pd.DataFrame(asked, columns=["user_id", "event_timestamp"])
    store = open_store(**where)
    with quiet():
        service = store.get_feature_service(SERVICE)
        found = store.get_historical_features(entity_df=frame, features=service).to_arrow()
    for prefix in EVENT_VIEWS.values():
        assert found[f"{prefix}_item_id"].to_pylist() == [model.as_of(user, instant) for user, instant in asked]
