"""Live events: what a user does now changes the pathways served online, before the day's tables are written.

    events = LiveEvents(Path("var/simulated/features"), Path("var/simulated/feature_store"))
    events.push([LiveEvent(user_id=42, item_id=7, event_time=datetime.now(UTC), labels=("is_click",))])

An event goes through Feast's push source `live_events` into the view `user_live`: each user's newest events. Batch and
live rows never overwrite each other; whoever reads lays the one over the other (feature_repo/live.py). So a
materialization loses no later event, and an event that the tables hold by now is not counted twice.

An event is known by its user, item and second. Pushing it again, or again with more feedback (a view that became a
like), changes that event; the order of arrival does not matter, so a client may repeat a push that it is not sure of.
Push through here and not into Feast's server: what that is given replaces a user's live events.
Pushes for one user are safe from any number of processes and threads: the user's row is locked between reading and
writing (one of 256 locks in Redis, a file lock beside SQLite).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from feast.data_source import PushMode
from feast.infra.online_stores.helpers import get_online_store_from_config

from datasets.contract import LABELS
from datasets.errors import DataError
from datasets.partitions import PART
from feature_repo.live import TIME, events_of, merge
from feature_repo.online_rows import RowOnlineStore, user_key
from feature_repo.profiles import Profile
from feature_repo.sources import LIVE_SOURCE, TIMESTAMP
from feature_repo.store import open_store, quiet
from feature_repo.views import LIVE_COLUMNS, LIVE_VIEW

UNKNOWN = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveEvent:
    """What a user was shown and did with it, so far. -1: unknown; `labels`: names of the contract.

    Raises DataError for a time without a zone or before 1970, an id out of range and a name that is no label.
    """

    user_id: int
    item_id: int
    event_time: datetime
    labels: tuple[str, ...] = ()
    play_ms: int = UNKNOWN
    author_id: int = UNKNOWN
    tag: int = UNKNOWN
    duration_ms: int = UNKNOWN

    def __post_init__(self) -> None:
        if self.event_time.tzinfo is None:
            raise DataError(f"the event time {self.event_time} of user {self.user_id} has no time zone: give it in UTC")
        for name in ("user_id", "item_id"):
            if not -(1 << 63) <= (value := getattr(self, name)) < 1 << 63:
                raise DataError(f"{name} is {value}: ids are int64")
        if self.event_time.timestamp() < 0:
            raise DataError(f"the event time {self.event_time} of user {self.user_id} is before 1970")
        if unknown := sorted(set(self.labels) - set(LABELS)):
            raise DataError(f"{', '.join(unknown)} is no label: use {', '.join(LABELS)}")

    def row(self) -> list[int]:
        """The event in the columns of a pathway."""
        mask = sum(1 << LABELS.index(name) for name in set(self.labels))
        time_s = int(self.event_time.timestamp())
        return [self.item_id, self.author_id, self.tag, time_s, self.play_ms, self.duration_ms, mask]


class LiveEvents:
    """The push side of one source's feature store. One may be shared by threads; each push opens nothing anew."""

    def __init__(
        self, features: Path, feature_store: Path, *, items: Path | None = None, profile: Profile | None = None
    ) -> None:
        """`items`: a partition of the items table. What an event leaves unknown of its item is taken from there.

        Raises DataError when there is no applied feature store.
        """
        self._store = open_store(features, feature_store, profile)
        online = get_online_store_from_config(self._store.config.online_store)
        assert isinstance(online, RowOnlineStore)
        self._online = online
        self._items = _items(items) if items else {}

    def push(self, events: Iterable[LiveEvent]) -> int:
        """Add events to the users' live rows; returns how many users were written."""
        by_user: dict[int, list[list[int]]] = {}
        for event in events:
            by_user.setdefault(event.user_id, []).append(self._complete(event).row())
        if not by_user:
            return 0
        users = sorted(by_user)
        with self._online.lock(self._store.config, [user_key(user) for user in users]):
            stored = self._online.read_rows(self._store.config, [LIVE_VIEW], users)
            merged = {
                user: merge(events_of(rows.get(LIVE_VIEW)), np.array(by_user[user], np.int64))
                for user, rows in zip(users, stored)
            }
            frame = pd.DataFrame({"user_id": users, TIMESTAMP: [_stamp(merged[user]) for user in users]})
            for i, column in enumerate(LIVE_COLUMNS):
                frame[column] = [merged[user][:, i] for user in users]
            with quiet():
                self._store.push(LIVE_SOURCE, frame, to=PushMode.ONLINE)
        return len(users)

    def _complete(self, event: LiveEvent) -> LiveEvent:
        if not (known := self._items.get(event.item_id)):
            return event
        return dataclasses.replace(
            event,
            author_id=known[0] if event.author_id == UNKNOWN else event.author_id,
            tag=known[1] if event.tag == UNKNOWN else event.tag,
            duration_ms=known[2] if event.duration_ms == UNKNOWN else event.duration_ms,
        )


def _stamp(events_ND: np.ndarray) -> datetime:
    return datetime.fromtimestamp(int(events_ND[-1, TIME]), UTC)


def _items(partition: Path) -> dict[int, tuple[int, int, int]]:
    """Author, first tag and duration by item, as the pathways know them."""
    if not (partition / PART).is_file():
        raise DataError(f"{partition} holds no items: give a partition of the items table")
    table = pq.read_table(partition / PART, columns=["item_id", "author_id", "tags", "duration_ms"])
    return {
        item: (author, tags[0] if tags else UNKNOWN, UNKNOWN if duration is None else duration)
        for item, author, tags, duration in zip(*(table[name].to_pylist() for name in table.column_names))
    }
