"""Features of one user from the online store, as the arrays that the model takes. Triton's `recommend` model calls it.

OnlineFeatures(Path("var/simulated/features"), Path("var/simulated/feature_store")).read(42)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from feast import FeatureStore

from feature_repo.services import SERVICE
from feature_repo.store import open_store
from feature_repo.views import EVENT_VIEWS, VIEW_COLUMNS


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
    """The online store of one source, read user by user. Opens at the first read, and anew after a failure."""

    def __init__(self, features: Path, feature_store: Path) -> None:
        self._folders = (features, feature_store)
        self._store: FeatureStore | None = None

    def open(self) -> None:
        """Open now rather than at the first read. Raises FeatureStoreError."""
        try:
            self._store = open_store(*self._folders)
            self._service = self._store.get_feature_service(SERVICE)
        except Exception as error:
            self._store = None
            raise FeatureStoreError(f"the feature store does not open: {error}") from error

    def read(self, user_id: int) -> UserFeatures:
        """What is known of the user. Raises FeatureStoreError when the store fails; an unknown user is no failure."""
        if self._store is None:
            self.open()
        assert self._store is not None
        try:
            answer = self._store.get_online_features(features=self._service, entity_rows=[{"user_id": user_id}]).proto
            lists, newest = {}, 0
            for name, vector in zip(answer.metadata.feature_names.val, answer.results):
                lists[name] = vector.values[0].int64_list_val.val
                newest = max(newest, vector.event_timestamps[0].seconds)
            events = {
                prefix: np.array([lists[column] for column in VIEW_COLUMNS[view]], np.int64).T
                for view, prefix in EVENT_VIEWS.items()
            }
            return UserFeatures(
                static=np.array(lists["static_codes"], np.int64),
                seen=np.array(lists["seen_item_id"], np.int64),
                feature_time_s=newest,
                known=newest > 0,
                **events,
            )
        except Exception as error:  # whatever the store of the day raises: SQLite, Redis, a network
            self._store = None
            raise FeatureStoreError(f"the features of user {user_id} cannot be read: {error}") from error
