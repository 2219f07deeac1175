"""Serve a release for real and check the answers: Triton is started, asked over gRPC, and every item looked up.

    serve_check(release=..., features=..., feature_store=..., items=..., users=None, log=Path("triton.log"))

An item is legal when its code tuple leads through the release's trie to the item itself, unseen when none of the user's
feature rows says that they were shown it. Both are checked against files, not against what the server has in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.training.checkpoint import Tokenizer
from releases.manifest import Manifest, verify
from serving.client import Answer, RecommendClient
from serving.triton_server import TritonServer

ROUNDS = 5  # every user is asked so often; the first round is the answer that is shown
DEADLINE_S = 30.0


def serve_check(
    *,
    release: Path,
    features: Path,
    feature_store: Path,
    items: Path,
    users: Sequence[int] | None,
    count: int = 10,
    k: int = 10,
    log: Path,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Ask for `k` items for each of `users` (None: `count` users of the release's day, evenly spread over it).

    `items` is the items table (titles and tags), `log` collects the server's output. Returns the shares `legal` and
    `unseen` of all returned items, `degraded` and `short` (answers without features, answers with fewer than k items),
    `ready_seconds`, `latency_ms` and the answers. Raises ValueError for a release that cannot be served or users that
    cannot be chosen, RuntimeError when the server does not start.
    """
    manifest, tokenizer = verify(release), Tokenizer.load(release / "tokenizer")
    asked, now_s = _users_of_day(features, manifest, count) if users is None else (list(users), None)
    seen = _seen(features, asked)
    progress(f"starting Triton with release {manifest.release_id}")
    started = time.monotonic()
    with TritonServer(release=release, features=features, feature_store=feature_store, log=log) as server:
        ready = time.monotonic() - started
        progress(f"ready after {ready:.1f} s, asking for {len(asked)} users")
        with RecommendClient(server.grpc_url) as client:
            answers, seconds = _ask(client, asked, k, now_s)
    pairs = [(user, item) for user, answer in zip(asked, answers) for item in answer.item_ids]
    if not pairs:
        raise ValueError(f"release {manifest.release_id} returned no item for any of {len(asked)} users; see {log}")
    if wrong := {answer.release_id for answer in answers} - {manifest.release_id}:
        raise ValueError(f"asked release {manifest.release_id}, {sorted(wrong)} answered; see {log}")
    latency = _latency(seconds)
    found: dict[str, Any] = {
        "legal": float(np.concatenate([_legal(tokenizer, answer) for answer in answers]).mean()),
        "unseen": sum(item not in seen[user] for user, item in pairs) / len(pairs),
        "degraded": sum(answer.degraded for answer in answers),
        "short": sum(len(answer.item_ids) < k for answer in answers),
        "ready_seconds": round(ready, 2),
        "latency_ms": latency,
        "users": _described(asked, answers, items),
    }
    progress(f"legal {found['legal']:.3f}, unseen {found['unseen']:.3f}, p50 {latency['p50']} ms")
    return found


def _users_of_day(features: Path, manifest: Manifest, count: int) -> tuple[list[int], int]:
    """`count` users whose history changed on the release's day, evenly spread by id, and the unix second after its end.

    That second is the request's clock: the logs of a data set lie years back, and the model was trained on such gaps.
    """
    file = features / "user_seen" / f"dt={manifest.day}" / "part-0.parquet"
    if not file.is_file():
        raise ValueError(
            f"{file} is missing, so there are no users to ask for; run the pathways step of {manifest.day}"
        )
    table = pq.read_table(file, columns=["user_id", "event_timestamp"])
    ids = np.unique(table["user_id"].to_numpy())
    if not len(ids):
        raise ValueError(f"{file} has no users; name some, or check the ingest of {manifest.day}")
    chosen = ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)]
    return chosen.tolist(), int(pc.max(table["event_timestamp"]).as_py().timestamp()) + 1


def _seen(features: Path, users: list[int]) -> dict[int, set[int]]:
    """All items that any feature row says the users were shown."""
    seen: dict[int, set[int]] = {user: set() for user in users}
    for file in sorted((features / "user_seen").glob("dt=*/part-0.parquet")):
        table = pq.read_table(file, columns=["user_id", "seen_item_id"], filters=[("user_id", "in", users)])
        for user, item_ids in zip(table["user_id"].to_pylist(), table["seen_item_id"].to_pylist()):
            seen[user].update(item_ids)
    return seen


def _ask(client: RecommendClient, users: list[int], k: int, now_s: int | None) -> tuple[list[Answer], list[float]]:
    """The first answer for each user, and the seconds of every request but the very first: that one warms up."""
    answers, seconds = [], []
    for round_number in range(ROUNDS):
        for user in users:
            start = time.perf_counter()
            answer = client.recommend(user, k, DEADLINE_S, now_s=now_s)
            seconds.append(time.perf_counter() - start)
            if round_number == 0:
                answers.append(answer)
    return answers, seconds[1:]


def _legal(tokenizer: Tokenizer, answer: Answer) -> np.ndarray:
    """For each item: does its code tuple lead to it?"""
    codes = torch.tensor(answer.sids, dtype=torch.int64).reshape(-1, tokenizer.sid_NL.shape[1])
    index = tokenizer.trie.lookup(codes).numpy()
    wanted = np.array(answer.item_ids, np.int64)
    return (index >= 0) & (tokenizer.catalogue.item_ids[np.maximum(index, 0)] == wanted)


def _latency(seconds: list[float]) -> dict[str, float]:
    p50, p99, longest = (round(float(x) * 1000, 1) for x in np.percentile(seconds, [50, 99, 100]))
    return {"p50": p50, "p99": p99, "max": longest, "requests": len(seconds)}


def _described(users: list[int], answers: list[Answer], items: Path) -> list[dict[str, Any]]:
    """The answers with the titles and tags of their items; null title and no tags where the source has none."""
    table = pq.read_table(items, columns=["item_id", "caption", "tags"])
    wanted = sorted({item for answer in answers for item in answer.item_ids})
    rows = table.filter(pc.is_in(table["item_id"], pa.array(wanted, pa.int64()))).to_pylist()
    about = {row["item_id"]: row for row in rows}
    described = []
    for user, answer in zip(users, answers):
        shown = [
            {
                "item_id": item,
                "title": about.get(item, {}).get("caption"),
                "tags": about.get(item, {}).get("tags") or [],
                "score": score,
                "sid": list(sid),
            }
            for item, score, sid in zip(answer.item_ids, answer.scores, answer.sids)
        ]
        described.append(
            {"user_id": user, "cold_start": answer.cold_start, "release_id": answer.release_id, "items": shown}
        )
    return described
