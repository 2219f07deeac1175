"""A real tritonserver answers over gRPC: legal and unseen items, flags, refusals that a client can act on."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import tritonclient.grpc as triton
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from models.onerec.ranking import MAX_BEAM
from models.training.checkpoint import Tokenizer
from serving.client import RecommendClient
from serving.ports import free_ports
from tests.feature_repo.conftest import DAYS, STRANGERS, end_of
from tests.serving.conftest import N_ITEMS

K = 10
NOW = int(end_of(DAYS[-1]).timestamp()) + 1


@pytest.fixture(scope="module")
def seen(world) -> dict[int, set[int]]:
    """The newest row of each user, from the partitions."""
    newest: dict[int, set[int]] = {}
    for file in sorted(world.features.glob("user_seen/dt=*/*.parquet")):
        table = pq.read_table(file)
        newest |= {u: set(s) for u, s in zip(table["user_id"].to_pylist(), table["seen_item_id"].to_pylist())}
    return newest


def test_items_are_legal_unseen_and_best_first(world, client, seen):
    tokenizer = Tokenizer.load(world.release / "tokenizer")
    assert len(seen) > 30
    for user, items in seen.items():
        answer = client.recommend(user, K, now_s=NOW)
        assert len(set(answer.item_ids)) == K
        assert not items & set(answer.item_ids)
        assert answer.scores == sorted(answer.scores, reverse=True)
        index = tokenizer.trie.lookup(torch.tensor(answer.sids))
        assert tokenizer.catalogue.item_ids[index.numpy()].tolist() == answer.item_ids
        assert (answer.cold_start, answer.degraded) == (False, False)
        assert answer.release_id == world.release.name
        assert end_of(DAYS[0]).timestamp() <= answer.feature_time_s <= end_of(DAYS[-1]).timestamp()


def test_answers_depend_on_the_user_and_repeat(client, seen):
    users = list(seen)[:8]
    first = [client.recommend(user, K, now_s=NOW) for user in users]
    assert first == [client.recommend(user, K, now_s=NOW) for user in users]
    assert len({tuple(answer.scores) for answer in first}) > 1


def test_unknown_users_are_a_cold_start(client):
    for user in (*STRANGERS, -1, 2**63 - 1):
        answer = client.recommend(user, K)
        assert len(answer.item_ids) == K
        assert (answer.cold_start, answer.degraded, answer.feature_time_s) == (True, False, 0)


def test_exclude_is_honoured(client):
    first = client.recommend(1, K, now_s=NOW)
    second = client.recommend(1, K, now_s=NOW, exclude=first.item_ids)
    assert len(second.item_ids) == K
    assert not set(first.item_ids) & set(second.item_ids)
    assert client.recommend(1, 1, now_s=NOW, exclude=first.item_ids[:1]).item_ids == first.item_ids[1:2]
    everything = client.recommend(1, K, now_s=NOW, exclude=range(N_ITEMS))
    assert (everything.item_ids, everything.scores, everything.sids) == ([], [], [])


def test_the_whole_catalogue_can_be_asked_for(client, seen):
    for k in (N_ITEMS, MAX_BEAM):
        answer = client.recommend(2, k, now_s=NOW)
        assert set(answer.item_ids) == set(range(N_ITEMS)) - seen[2]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"k": 0}, "k is 0; ask for 1 to 512 items"),
        ({"k": MAX_BEAM + 1}, "k is 513"),
        ({"k": 5, "now_s": -1}, "now_s is -1; give the unix time"),
        ({"k": 5, "exclude": range(10_001)}, "exclude has 10001 items; give at most 10000"),
        ({"k": 5, "beam": 4}, "beam is 4; give 5"),
        ({"k": 5, "beam": MAX_BEAM + 1}, "beam is 513"),
        ({"k": 5, "max_age_s": -1}, "max_age_s is -1"),
        ({"k": 5, "live": [[1, 2, 3, -5, 0, 0, 0]]}, "live has an event"),
        ({"k": 5, "live": [[1, 2, 3, 5, 0, 0, 256]]}, "live has an event"),
        ({"k": 5, "live": [[1, 2, 3, 5, 0, 0, 1]] * 1001}, "live has 1001 events; give at most 1000"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(client, request_, message):
    with pytest.raises(ValueError, match=message) as refusal:
        client.recommend(1, **request_)
    assert not any(trace in str(refusal.value) for trace in ("Traceback", "/", ".py", "line "))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("k", np.array([[5, 6]], np.int32)),
        ("k", np.array([[5]], np.int64)),
        ("k", np.array([[np.nan]], np.float32)),
        ("user_ID", np.array([[5]], np.int64)),
        ("user_id", np.zeros((17, 1), np.int64)),
        ("live", np.zeros((1, 2, 6), np.int64)),
    ],
)
def test_malformed_tensors_are_refused(grpc_url, name, array):
    """By Triton itself, and the next request is answered."""
    inputs = {"user_id": np.array([[1]], np.int64), "k": np.array([[5]], np.int32)} | {name: array}
    tensors = []
    for key, value in inputs.items():
        kind = f"{'INT' if value.dtype.kind == 'i' else 'FP'}{8 * value.itemsize}"
        tensors.append(triton.InferInput(key, list(value.shape), kind))
        tensors[-1].set_data_from_numpy(value)
    raw = triton.InferenceServerClient(grpc_url)
    with contextlib.closing(raw), pytest.raises(triton.InferenceServerException) as refusal:
        raw.infer("recommend", tensors)
    assert "INVALID_ARGUMENT" in refusal.value.status()
    with RecommendClient(grpc_url) as client:
        assert client.recommend(1, 5).item_ids


def test_deadline(client):
    with pytest.raises(TimeoutError, match=r"user 1 within 0\.001 s"):
        client.recommend(1, 200, deadline_s=0.001)
    assert client.recommend(1, K).item_ids


def test_no_server():
    with RecommendClient(f"127.0.0.1:{free_ports(1)[0]}") as nobody, pytest.raises(ConnectionError, match="make up"):
        nobody.recommend(1, K)


def test_a_failing_feature_store_degrades_and_heals(world, client):
    """Answers go on: a user asked for before has stale features, another none; whole again when the store is."""
    expected = client.recommend(1, K, now_s=NOW)
    with contextlib.closing(sqlite3.connect(world.feature_store / "online.db")) as connection:
        connection.execute("ALTER TABLE onerec_user_short RENAME TO away")
        try:
            answer = client.recommend(1, K, now_s=NOW, exclude=[7])
            nothing = client.recommend(10**6, K, now_s=NOW)
        finally:
            connection.execute("ALTER TABLE away RENAME TO onerec_user_short")
    assert (answer.degraded, answer.stale, answer.cold_start) == (True, True, False)
    assert answer.feature_time_s == expected.feature_time_s
    assert 7 not in answer.item_ids and len(answer.item_ids) == K
    assert (nothing.degraded, nothing.stale, nothing.cold_start, nothing.feature_time_s) == (True, False, False, 0)
    assert len(nothing.item_ids) == K
    deadline = time.monotonic() + 20  # the circuit breaker opens for a second at first
    while (healed := client.recommend(1, K, now_s=NOW)).degraded and time.monotonic() < deadline:
        time.sleep(0.1)
    assert healed == expected


def test_filters(world, client):
    """Authors that are muted, and items that are too old or of unknown age, do not come; what is left fills up K."""
    table = pq.read_table(world.items)
    author = dict(zip(table["item_id"].to_pylist(), table["author_id"].to_pylist()))
    first = client.recommend(3, K, now_s=NOW)
    muted = {author[item] for item in first.item_ids}
    assert len(muted) < 20
    others = client.recommend(3, K, now_s=NOW, exclude_authors=sorted(muted))
    assert others.item_ids and not muted & {author[item] for item in others.item_ids}
    # item i was uploaded i seconds after 1970, item 0 has no time
    young = client.recommend(3, K, now_s=210, max_age_s=100).item_ids
    assert len(young) == K and all(110 <= item <= 199 for item in young)


def test_live_events_count_at_once(client):
    """An item that the request says was just seen does not come, and what was seen changes the rest."""
    first = client.recommend(4, K, now_s=NOW)
    event = [first.item_ids[0], 1, 1, NOW - 5, 9000, 10_000, 0b10]
    second = client.recommend(4, K, now_s=NOW, live=[event])
    assert event[0] not in second.item_ids and len(second.item_ids) == K
    assert second.scores[:5] != first.scores[1:6]


def test_rerank_orders_by_the_reward_model(client):
    """P-Scores lie in (0, 1), log-probabilities below 0; the order of the model is another."""
    own, ranked = client.recommend(5, 8, now_s=NOW), client.recommend(5, 8, now_s=NOW, rerank=True)
    assert all(0 < score < 1 for score in ranked.scores)
    assert ranked.scores == sorted(ranked.scores, reverse=True)
    assert max(own.scores) < 0 and own.item_ids != ranked.item_ids


def test_a_wider_beam_finds_no_worse(client):
    narrow, wide = (client.recommend(6, 5, now_s=NOW, beam=beam) for beam in (5, 200))
    assert wide.scores[0] >= narrow.scores[0] - 1e-5


def test_one_user_a_request(grpc_url):
    tensors = [triton.InferInput("user_id", [2, 1], "INT64"), triton.InferInput("k", [2, 1], "INT32")]
    tensors[0].set_data_from_numpy(np.array([[1], [2]]))
    tensors[1].set_data_from_numpy(np.array([[5], [5]], np.int32))
    raw = triton.InferenceServerClient(grpc_url)
    with contextlib.closing(raw), pytest.raises(triton.InferenceServerException, match="one user a request"):
        raw.infer("recommend", tensors)


def test_the_clock_of_the_server_is_the_default(client):
    long_ago, now, default = (client.recommend(1, 50, now_s=t) for t in (1000, int(time.time()), None))
    assert default.scores == now.scores
    assert default.scores != long_ago.scores


def test_the_documented_grpcurl_body_is_answered(grpc_url, client):
    """grpcurl sends this JSON as the message of the call."""
    text = (Path(__file__).parents[2] / "docs" / "serving_api.md").read_text()
    body = text.split("<<'JSON'", 1)[1].split("\n", 1)[1].split("\nJSON\n", 1)[0]
    with grpc.insecure_channel(grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(json_format.Parse(body, service_pb2.ModelInferRequest()), timeout=30)
    assert answer.outputs[0].name == "item_ids"
    assert np.frombuffer(answer.raw_output_contents[0], np.int64).tolist() == client.recommend(42, 10, 30.0).item_ids
