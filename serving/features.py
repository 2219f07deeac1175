"""The user's features for serving, whatever the feature store does: full, stale from a cache, or none.

    reader = FeatureReader(OnlineFeatures(...), config)
    for features, kind in reader.read([42, 7]): ...

A read that fails, or takes longer than its time, opens a circuit breaker: the store is then left alone for a second,
longer after each further failure (at most 30 s), and everybody is answered from the cache meanwhile. One failure is one
line in the log, not one a request.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from feature_repo.online import FeatureStoreError, UserFeatures
from models.onerec.features import NUM_FIELDS

FULL, COLD, STALE, DEGRADED = "full", "cold_start", "stale", "degraded"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Store(Protocol):
    def read_many(self, user_ids: Sequence[int]) -> list[UserFeatures]: ...


class Breaker:
    """Closed: the store is asked. After a failure open for a pause; then one try decides whether it closes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._pause, self._until = clock, 0.0, 0.0

    @property
    def open(self) -> bool:
        return self._clock() < self._until

    def succeeded(self) -> None:
        self._pause = self._until = 0.0

    def failed(self) -> float:
        """Returns the pause in seconds."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._until = self._clock() + self._pause
        return self._pause


class FeatureReader:
    """Reads through a store with a time limit, a cache of the last answers and a circuit breaker.

    The store is only ever called by one thread of this reader's own, so that a hanging store holds up nobody.
    """

    def __init__(
        self,
        store: Store,
        *,
        timeout_s: float,
        cache_users: int,
        stale_s: float,
        log: Callable[[str], object] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.breaker = Breaker(clock)
        self._store, self._timeout_s, self._log, self._clock = store, timeout_s, log, clock
        self._cache: OrderedDict[int, tuple[float, UserFeatures]] = OrderedDict()
        self._cache_users, self._stale_s = cache_users, stale_s
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "features")
        self._pending: concurrent.futures.Future | None = None

    def warm(self, timeout_s: float = 60.0) -> None:
        """Open the store before the first request, which takes seconds; one that is down does not keep us from it."""
        usual, self._timeout_s = self._timeout_s, timeout_s
        self._ask([0])
        self._timeout_s = usual

    def read(self, user_ids: Sequence[int]) -> list[tuple[UserFeatures, str]]:
        """Features and their kind for each user, in order. Never fails."""
        found = self._ask(user_ids)
        if found is None:
            return [self._without_store(user) for user in user_ids]
        for user, features in zip(user_ids, found):
            if features.known and self._cache_users:
                self._cache[user] = self._clock(), features
                self._cache.move_to_end(user)
        while len(self._cache) > self._cache_users:
            self._cache.popitem(last=False)
        return [(features, FULL if features.known else COLD) for features in found]

    def _ask(self, user_ids: Sequence[int]) -> list[UserFeatures] | None:
        hangs = self._pending is not None and not self._pending.done()
        if hangs or self.breaker.open:
            return None
        self._pending = self._thread.submit(self._store.read_many, list(user_ids))
        try:
            found = self._pending.result(self._timeout_s)
            self.breaker.succeeded()
            return found
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s"
        except FeatureStoreError as error:
            reason = str(error)
        pause = self.breaker.failed()
        self._log(f"feature store: {reason}; answering from the cache or without features for {pause:g} s")
        return None

    def _without_store(self, user: int) -> tuple[UserFeatures, str]:
        at, features = self._cache.get(user, (0.0, NOTHING))
        if features.known and self._clock() - at <= self._stale_s:
            return features, STALE
        return NOTHING, DEGRADED


_EVENTS = np.zeros((0, NUM_FIELDS), np.int64)
NOTHING = UserFeatures(
    static=np.zeros(0, np.int64),
    short=_EVENTS,
    positive=_EVENTS,
    lifelong=_EVENTS,
    seen=np.zeros(0, np.int64),
    feature_time_s=0,
    known=False,
)
"""The features of a user of whom nothing is known."""


def with_live(features: UserFeatures, live_ND: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Short-term pathway and seen items with a request's own live events behind them.

    An event that the store knows by now (same item and second) counts once, as the request tells it.
    """
    if not len(live_ND):
        return features.short, features.seen
    known = {(int(item), int(at)) for item, at in live_ND[:, [0, 3]]}
    old = np.array([(int(e[0]), int(e[3])) not in known for e in features.short], bool)
    short = np.concatenate([features.short[old], live_ND[np.argsort(live_ND[:, 3], kind="stable")]])
    return short[-longest:], np.union1d(features.seen, live_ND[:, 0])
