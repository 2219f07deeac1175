"""Starting and stopping a server: mixed releases are refused by name; the check of a served release leaves nothing.

That a server dies with a killed owner is seen when the fixture `server` ends.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datasets.partitions import PART, partition_path
from serving.check import serve_check
from serving.triton_server import TritonServer
from tests.feature_repo.conftest import DAYS
from tests.serving.conftest import fit_tokenizer, publish_release, writers_of


def refused(world, release: Path, log: Path) -> str:
    """What a server says that does not start with this release."""
    folders = {"features": world.features, "feature_store": world.feature_store}
    with pytest.raises(RuntimeError) as error, TritonServer(release=release, log=log, **folders):
        pass
    return str(error.value)


def test_mixed_releases_are_refused_by_name(world, tmp_path):
    """The trie of another tokenizer, and a feature service that this code does not read: each is named at load."""
    training = partition_path(world.features / "training", DAYS[-1]) / PART
    fit_tokenizer(world.items, training, tmp_path / "other", seed=2)
    files = world.files | {"tokenizer/trie.safetensors": tmp_path / "other" / "trie.safetensors"}
    mixed = publish_release(world.store, files, service="onerec_v0")
    message = refused(world, mixed, tmp_path / "mixed.log")
    assert "trie and SID table differ; they come from different tokenizers, do not mix releases" in message
    assert "wants feature service onerec_v0, this server reads onerec_v1" in message
    assert "ended with exit status 1" in message


def test_a_released_file_that_was_exchanged_is_named(world, tmp_path):
    """No server needed: `onerec` loads nothing before the same check."""
    files = world.files | {"model/config.json": tmp_path / "config.json"}
    files["model/config.json"].write_text(world.files["model/config.json"].read_text().replace(": 64", ": 65"))
    release = publish_release(world.store, files)
    (release / "model" / "config.json").write_bytes((world.release / "model" / "config.json").read_bytes())
    arguments = {"features": world.features, "feature_store": world.feature_store, "items": world.items, "users": None}
    with pytest.raises(ValueError, match=r"model/config\.json: expected sha256"):
        serve_check(release=release, log=tmp_path / "triton.log", **arguments)


def test_serve_check(world, tmp_path):
    lines: list[str] = []
    found = serve_check(
        release=world.release,
        features=world.features,
        feature_store=world.feature_store,
        items=world.items,
        users=None,
        count=6,
        k=12,
        log=tmp_path / "triton.log",
        progress=lines.append,
    )
    assert (found["legal"], found["unseen"], found["degraded"], found["short"]) == (1.0, 1.0, 0, 0)
    assert found["latency_ms"]["requests"] == 6 * 5 - 1
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    assert len(lines) == 3
    titles = dict(zip(*pq.read_table(world.items, columns=["item_id", "caption"]).to_pydict().values()))
    asked = [user["user_id"] for user in found["users"]]
    known = pq.read_table(partition_path(world.features / "user_seen", DAYS[-1]) / PART)["user_id"].to_pylist()
    assert (asked[0], asked[-1], len(set(asked))) == (min(known), max(known), 6)
    for user in found["users"]:
        assert user["release_id"] == world.release.name
        assert not user["cold_start"]
        assert len(user["items"]) == 12
        for item in user["items"]:
            assert item["title"] == titles[item["item_id"]]
            assert item["tags"]
            assert len(item["sid"]) == 3
    assert not writers_of(tmp_path / "triton.log")
    assert not list(Path("/dev/shm").glob(f"onerec-{os.getpid()}-*"))
