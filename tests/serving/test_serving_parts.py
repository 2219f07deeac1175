"""Parts of serving without a server: the circuit breaker, the cache, the guard of a candidate, the choice of items,
settings, and what the client does with errors."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton

from feature_repo.online import FeatureStoreError
from serving.client import AsyncRecommendClient, RecommendClient
from serving.config import Rollout, ServingConfig
from serving.features import COLD, DEGRADED, FULL, NOTHING, STALE, FeatureReader, with_live
from serving.protocol import OverloadedError, Query, explained, repeatable
from serving.repository import TEMPLATES
from serving.route import Ask, Route
from serving.routing import Guard


class Store:
    """Knows even users; fails or hangs when told to."""

    def __init__(self) -> None:
        self.calls, self.down, self.hang = 0, False, threading.Event()
        self.hang.set()

    def read_many(self, user_ids):
        self.calls += 1
        self.hang.wait(5)
        if self.down:
            raise FeatureStoreError("gone")
        return [dataclasses.replace(NOTHING, known=user % 2 == 0, feature_time_s=user) for user in user_ids]


def reader_of(store, clock, lines, **changed) -> FeatureReader:
    settings = {"timeout_s": 5.0, "cache_users": 3, "stale_s": 100.0} | changed
    return FeatureReader(store, log=lines.append, clock=clock, **settings)


def test_features_from_store_then_cache_then_none():
    now, store, lines = [1000.0], Store(), []
    reader = reader_of(store, lambda: now[0], lines)
    assert [kind for _, kind in reader.read([2, 3])] == [FULL, COLD]
    store.down = True
    for _ in range(50):  # one failure opens the breaker: one line and one call, not fifty
        assert [kind for _, kind in reader.read([2, 3])] == [STALE, DEGRADED]
    assert (store.calls, len(lines)) == (2, 1)
    now[0] += 1.5
    reader.read([2])  # one try, and a longer pause
    now[0] += 1.5
    reader.read([2])
    assert store.calls == 3
    now[0] += 1.0
    store.down = False
    assert reader.read([2])[0][1] == FULL and not reader.breaker.open
    store.down = True
    reader.read([2])
    now[0] += 101
    assert reader.read([2])[0] == (NOTHING, DEGRADED)  # too old to be of use


def test_the_cache_keeps_the_users_of_late():
    now, store = [1000.0], Store()
    reader = reader_of(store, lambda: now[0], [])
    reader.read([2, 4, 6])
    reader.read([2, 8])
    store.down = True
    assert [kind for _, kind in reader.read([2, 4, 6, 8])] == [STALE, DEGRADED, STALE, STALE]


def test_a_hanging_store_holds_nobody_up():
    store, lines = Store(), []
    reader = reader_of(store, time.monotonic, lines, timeout_s=0.05)
    store.hang.clear()
    assert reader.read([2])[0][1] == DEGRADED
    reader.breaker.succeeded()
    assert reader.read([2])[0][1] == DEGRADED and store.calls == 1  # the first call still hangs: no second one
    store.hang.set()
    assert len(lines) == 1 and "no answer within 0.05 s" in lines[0]


def test_live_events_count_once():
    event = [7, -1, -1, 50, -1, -1, 1]
    features = dataclasses.replace(NOTHING, short=np.array([[7, -1, -1, 50, -1, -1, 0], [8, -1, -1, 60, -1, -1, 0]]))
    short, seen = with_live(features, np.array([event]), 20)
    assert short[:, [0, 6]].tolist() == [[8, 0], [7, 1]] and seen.tolist() == [7]


def test_the_guard_of_a_candidate():
    def fed(bad: int, good: int, seconds: float = 0.01, **changed) -> str | None:
        guard = Guard(Rollout(min_requests=10, window=100, **changed))
        for _ in range(20):
            guard.production(0.01)
        reasons = [guard.candidate(seconds, failed=i < bad, empty=False, illegal=0) for i in range(bad + good)]
        return next((reason for reason in reasons if reason), None)

    assert fed(0, 100) is None
    assert fed(5, 4) is None  # too few to tell
    assert "50.0 % of 10 requests failed" in (fed(5, 5) or "")
    assert fed(5, 5, max_bad_percent=60) is None
    assert "takes 30.0 ms, production's 10.0 ms" in (fed(0, 10, 0.03) or "")
    guard = Guard(Rollout())
    assert "not legal" in (guard.candidate(0.01, failed=False, empty=False, illegal=1) or "")


def test_items_are_chosen_as_a_slow_loop_would():
    rng = np.random.default_rng(0)
    for _ in range(50):
        route = Route.__new__(Route)
        n = 30
        from models.onerec.features import Catalogue

        route.catalogue, route.sid_NL = Catalogue(rng.permutation(100)[:n]), rng.integers(0, 4, (n, 3))
        route.author, route.upload_s = rng.integers(0, 5, n), rng.integers(0, 100, n)
        route.listed = rng.random(n) < 0.9
        at = rng.integers(0, n, 40)
        items, sids = route.catalogue.item_ids[at], route.sid_NL[at].copy()
        items[::7], sids[3] = -1, 9
        ask = Ask(
            user_id=1, k=8, now_s=100, exclude=rng.integers(0, 100, 5), exclude_authors=rng.integers(0, 5, 1),
            live=np.zeros((0, 7), np.int64), max_age_s=int(rng.choice([0, 80])), beam=0, rerank=False,
        )  # fmt: skip
        seen, blocked = rng.integers(0, 100, 5), rng.integers(0, 100, 5)
        picked = route.pick(items, np.arange(40.0), sids, ask, seen, blocked)
        expected = []
        for item, place, sid in zip(items.tolist(), at, sids):
            fine = item >= 0 and (sid == route.sid_NL[place]).all() and route.listed[place]
            fine = fine and item not in {*seen, *blocked, *ask.exclude, *expected}
            fine = fine and route.author[place] not in ask.exclude_authors
            if fine and (not ask.max_age_s or (route.upload_s[place] > 0 and route.upload_s[place] >= 20)):
                expected.append(item)
        assert picked.items.tolist() == expected[:8]
        assert picked.illegal == 1 * (items[3] >= 0)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("device", "tpu", "device is 'tpu'"),
        ("max_batch", 0, r"max_batch is 0; it must lie in 1\.\.1024"),
        ("max_k", 513, "max_k is 513"),
        ("select", "best", "select is 'best'"),
    ],
)
def test_wrong_settings_are_named(setting, value, message):
    with pytest.raises(ValueError, match=message):
        ServingConfig(**{setting: value})
    with pytest.raises(ValueError, match="canary_percent is 101"):
        Rollout(canary_percent=101)


def test_the_api_page_names_every_tensor():
    """docs/serving_api.md against the configuration that Triton checks requests with."""
    config = (TEMPLATES / "recommend" / "config.pbtxt").read_text()
    page = (TEMPLATES.parents[1] / "docs" / "serving_api.md").read_text()
    tensors = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+)', config)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \[", page, re.MULTILINE)
    assert rows == tensors and len(tensors) == 15


def test_only_safe_errors_are_repeated():
    def error(status: str, message: str = "") -> Exception:
        return explained(triton.InferenceServerException(message, status), 7, 2)

    assert repeatable(error("StatusCode.UNAVAILABLE", "connection refused"))
    for status, message in (
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size"),
        ("StatusCode.UNAVAILABLE", "Request timeout expired"),
        ("StatusCode.INVALID_ARGUMENT", "k is 0"),
        ("StatusCode.DEADLINE_EXCEEDED", ""),
        ("StatusCode.INTERNAL", ""),
    ):
        assert not repeatable(error(status, message))
    assert isinstance(error("StatusCode.UNAVAILABLE", "Exceeds maximum queue size"), OverloadedError)


def test_retries_end_with_the_deadline(monkeypatch):
    calls = []

    def refuse(inputs, left_s):
        calls.append(left_s)
        raise triton.InferenceServerException("connection refused", "StatusCode.UNAVAILABLE")

    with RecommendClient("127.0.0.1:1", retries=3) as client:
        monkeypatch.setattr(client, "_infer", refuse)
        with pytest.raises(ConnectionError):
            client.recommend(1, 5, 10.0)
        assert len(calls) == 4 and calls == sorted(calls, reverse=True)
        with pytest.raises(ConnectionError):
            client.recommend(1, 5, 0.001)
        assert len(calls) == 5


def test_a_slow_request_is_hedged():
    """The first try hangs until the second has answered."""
    calls, answered = [], threading.Event()

    def slow_first(inputs, left_s):
        calls.append(left_s)
        if len(calls) == 1:
            answered.wait(10)
        else:
            answered.set()
        return len(calls)

    with RecommendClient("127.0.0.1:1", hedge_after_s=0.05) as client:
        client._infer = slow_first
        assert client._ask([], 10.0) == 2 and len(calls) == 2

    async def run() -> tuple[int, int]:
        tries, done = [], asyncio.Event()

        async def infer(inputs, left_s):
            tries.append(left_s)
            if len(tries) == 1:
                await done.wait()
            return len(tries)

        async with AsyncRecommendClient("127.0.0.1:1", hedge_after_s=0.05) as client:
            client._infer = infer
            return await client._ask([], 10.0), len(tries)

    assert asyncio.run(run()) == (2, 2)


def test_a_query_refuses_what_is_no_id():
    with pytest.raises(ValueError, match="user_id holds a number that is no int64"):
        Query(user_id=2**63, k=1).inputs()
    with pytest.raises(ValueError, match="7 fields"):
        Query(user_id=1, k=1, live=[[1, 2]]).inputs()
