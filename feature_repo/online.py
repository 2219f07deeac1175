"""Features of users from the online store, as the arrays that the model takes. Triton's `recommend` model calls it.

    OnlineFeatures(Path("var/simulated/features"), Path("var/simulated/feature_store")).read(42)

All views of all users asked for are one read of the store (one round trip to Redis), decoded straight from the stored
bytes; events pushed since the tables were written are laid over them (feature_repo/live.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from feast import FeatureStore
from feast.infra.online_stores.helpers import get_online_store_from_config

from feature_repo.live import ITEM, events_of, over, since
from feature_repo.online_rows import RowOnlineStore
from feature_repo.profiles import Profile
from feature_repo.services import MODEL_VERSIONS, SERVICE
from feature_repo.store import open_store
from feature_repo.views import EVENT_VIEWS, LIVE_VIEW, SHORT_LEN, VIEW_COLUMNS

Rows = Mapping[str, tuple[int, Mapping[str, np.ndarray | None]]]


class FeatureStoreError(RuntimeError):
    """The feature store did not answer, or not with what the feature service promises."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserFeatures:
    """int64 arrays: static [S], short, positive and lifelong [n, 7] oldest first, seen [m].

    Of a user whom the store does not know all are empty, `known` is false and `feature_time_s` (the unix time of the
    newest row) is 0.
    """

    static: np.ndarray
    short: np.ndarray
    positive: np.ndarray
    lifelong: np.ndarray
    seen: np.ndarray
    feature_time_s: int
    known: bool


class OnlineFeatures:
    """The online store of one source. Opens at the first read, and anew after a failure."""

    def __init__(self, features: Path, feature_store: Path, profile: Profile | None = None) -> None:
        self._where = (features, feature_store, profile)
        self._views = (*MODEL_VERSIONS[SERVICE], LIVE_VIEW)
        self._store: FeatureStore | None = None
        self._online: RowOnlineStore

    def open(self) -> None:
        """Open now rather than at the first read. Raises FeatureStoreError."""
        try:
            store = open_store(*self._where)
            online = get_online_store_from_config(store.config.online_store)
            assert isinstance(online, RowOnlineStore)
            self._online, self._store = online, store
        except Exception as error:
            raise FeatureStoreError(f"the feature store does not open: {error}") from error

    def read(self, user_id: int) -> UserFeatures:
        """What is known of the user. Raises FeatureStoreError when the store fails; an unknown user is no failure."""
        return self.read_many([user_id])[0]

    def read_many(self, user_ids: Sequence[int]) -> list[UserFeatures]:
        """`read` of several users in one call, in their order."""
        if self._store is None:
            self.open()
        assert self._store is not None
        try:
            return [_features(rows) for rows in self._online.read_rows(self._store.config, self._views, user_ids)]
        except Exception as error:  # whatever the store of the day raises: SQLite, Redis, a network
            self._store = None
            users = "1 user" if len(user_ids) == 1 else f"{len(user_ids)} users"
            # It is logged: neither an id nor the store's own words, which may hold a user's key.
            raise FeatureStoreError(f"the features of {users} cannot be read: {type(error).__name__}") from error


def _features(rows: Rows) -> UserFeatures:
    """The stored rows of one user, {view: (time stamp in ms, columns)}, as the model takes them."""
    live_ND = events_of(rows.get(LIVE_VIEW))
    events = {prefix: _events(rows, view) for view, prefix in EVENT_VIEWS.items()}
    events["short"] = over(events["short"], _covered_ms(rows, "user_short"), live_ND, SHORT_LEN)
    seen = _column(rows, "user_seen", "seen_item_id")
    live_items = since(live_ND, _covered_ms(rows, "user_seen"))[:, ITEM]
    return UserFeatures(
        static=_column(rows, "user_static", "static_codes"),
        seen=np.concatenate([seen, live_items]) if len(live_items) else seen,
        feature_time_s=max((stamp_ms for stamp_ms, _ in rows.values()), default=0) // 1000,
        known=bool(rows),
        **events,
    )


def _covered_ms(rows: Rows, view: str) -> int:
    return rows[view][0] if view in rows else 0


def _column(rows: Rows, view: str, name: str) -> np.ndarray:
    values = rows[view][1][name] if view in rows else None
    return np.zeros(0, np.int64) if values is None else values


def _events(rows: Rows, view: str) -> np.ndarray:
    return np.stack([_column(rows, view, name) for name in VIEW_COLUMNS[view]], 1)
