"""What our two online stores share: Feast's interface over packed rows, of which the newest one always wins.

Feast's own stores keep one protobuf value a column. Ours keep one packed row a user and view (feature_repo/packed.py),
and write by one rule, atomically: a row replaces the stored one unless that is newer. So a day can be written again
with mended values, and an older day after a newer one, without going back in time. Feast's SQLite store overwrites
whatever is there; its Redis store refuses an equal time stamp, so a mended day would never be served, and reads before
it writes, so two writers may leave the older row.

`read_rows` is the way serving reads: every view of many users in one call, without a detour through protobuf.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Int64List, Value

from feature_repo import packed

Row = tuple[bytes, int, bytes]
"""A row to write: the entity's key, its time stamp in ms, its bytes."""


class RowOnlineStore(OnlineStore):
    """An online store that keeps packed rows. A subclass says how rows are put, got and dropped, and how to lock."""

    @abstractmethod
    def put_rows(self, config: RepoConfig, view: str, rows: Sequence[Row]) -> None:
        """Store each row unless the stored one of its key is newer. Atomic for each row."""

    @abstractmethod
    def get_rows(self, config: RepoConfig, views: Sequence[str], keys: Sequence[bytes]) -> list[list[bytes | None]]:
        """The stored row of each key (outer list) and view (inner list), None where there is none."""

    @abstractmethod
    def lock(self, config: RepoConfig, keys: Sequence[bytes]) -> contextlib.AbstractContextManager[None]:
        """Hold the keys against every other process that locks them. For a read that decides a write."""

    @abstractmethod
    def forget(self, config: RepoConfig, key: bytes, *, dry_run: bool) -> int:
        """How many rows an entity has over all views; unless `dry_run`, delete them for good."""

    def read_rows(
        self, config: RepoConfig, views: Sequence[str], users: Sequence[int]
    ) -> list[dict[str, tuple[int, dict[str, np.ndarray | None]]]]:
        """For each user {view: (time stamp in ms, {column: int64 array or None})}; a view without a row is left out."""
        found = self.get_rows(config, views, [user_key(user) for user in users])
        return [{view: packed.decode(row) for view, row in zip(views, rows) if row is not None} for rows in found]

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        rows = []
        for entity_key, values, stamp, _ in data:
            stamp_ms = _stamp_ms(stamp)
            columns = {name: _array(table, name, value) for name, value in values.items()}
            rows.append((serialize_entity_key(entity_key, 3), stamp_ms, packed.encode(stamp_ms, columns)))
        self.put_rows(config, table.name, rows)
        if progress:
            progress(len(rows))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        wanted = requested_features or [feature.name for feature in table.features]
        answer: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for (row,) in self.get_rows(config, [table.name], [serialize_entity_key(key, 3) for key in entity_keys]):
            if row is None:
                answer.append((None, None))
                continue
            stamp_ms, columns = packed.decode(row)
            values = {name: _value(columns.get(name)) for name in wanted}
            answer.append((datetime.fromtimestamp(stamp_ms / 1000, UTC), values))
        return answer


def user_key(user_id: int) -> bytes:
    """The key that Feast gives a user's rows."""
    return serialize_entity_key(EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user_id)]), 3)


@contextlib.contextmanager
def entered(managers: Sequence[contextlib.AbstractContextManager]) -> Iterator[None]:
    """Several context managers as one, entered in order."""
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


def _stamp_ms(stamp: datetime) -> int:
    """Feast hands over UTC, with or without saying so."""
    aware = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)


def _array(table: FeatureView, name: str, value: Value) -> np.ndarray | None:
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    if kind != "int64_list_val":
        raise ValueError(
            f"{table.name}.{name} is a {kind}: the online store keeps lists of int64; declare it Array(Int64)"
        )
    return np.fromiter(value.int64_list_val.val, np.int64, len(value.int64_list_val.val))


def _value(column: np.ndarray | None) -> Value:
    return Value() if column is None else Value(int64_list_val=Int64List(val=column.tolist()))
