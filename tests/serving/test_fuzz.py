"""A seeded slice of benchmarks/serving/fuzz.py on the shared server: no internal error, and it answers afterwards."""

from __future__ import annotations

import asyncio

from benchmarks.serving.fuzz import SAFE, fuzz, shapes_of
from serving.client import AsyncRecommendClient
from serving.config import MODEL_PREFIX

REQUESTS = 400


def test_malformed_requests_get_an_error_and_the_server_lives(world, grpc_url, client):
    expected, model = client.recommend(1, 10, now_s=1_700_000_000), MODEL_PREFIX + world.release.name
    outcome = asyncio.run(fuzz(grpc_url, model, shapes_of(grpc_url, model), REQUESTS, seed=3, clients=8))
    assert outcome.total() == REQUESTS
    assert set(outcome) <= {*SAFE, "ok"}, outcome
    assert outcome["ok"] and outcome["INVALID_ARGUMENT"] > REQUESTS // 2
    assert client.recommend(1, 10, now_s=1_700_000_000) == expected


def test_the_asyncio_client_answers_alike(grpc_url, client):
    async def ask():
        async with AsyncRecommendClient(grpc_url, hedge_after_s=0.001) as other:
            assert await other.ready()
            return await asyncio.gather(*(other.recommend(user, 5, 30.0, now_s=1_700_000_000) for user in range(6)))

    found = asyncio.run(ask())
    one_by_one = [client.recommend(user, 5, now_s=1_700_000_000) for user in range(6)]
    assert [sorted(a.item_ids) for a in found] == [sorted(a.item_ids) for a in one_by_one]
