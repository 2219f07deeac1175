"""Channels: compare-and-swap between processes, promote, rollback, refusal of damaged releases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from releases.channels import channel_in_use, move_channel, promote, read_channel, rollback
from releases.object_store import ConflictError, DirectoryStore, digest_bytes
from tests.releases.conftest import publish_small, write_files


@pytest.fixture
def releases(store, tmp_path) -> list[str]:
    return [publish_small(store, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2, 3)]


def test_promote_and_rollback_walk_the_stack(store, releases):
    assert read_channel(store, "production") is None
    for release_id in releases:
        promote(store, release_id)
    assert rollback(store).release_id == releases[1]
    assert rollback(store).release_id == releases[0]
    with pytest.raises(ValueError, match="no earlier release"):
        rollback(store)
    channel = read_channel(store, "production")
    assert channel.previous == []
    assert [h["release_id"] for h in channel.history] == [*releases, releases[1], releases[0]]
    assert read_channel(store, "candidate") is None


def test_who_needs_a_release_is_told_how_to_get_one(store, tmp_path):
    with pytest.raises(ValueError, match="production names no release; make one: onerec daily"):
        channel_in_use(store, "production")
    release_id = publish_small(store, write_files(tmp_path / "r", 1))
    with pytest.raises(ValueError, match="candidate names no release; promote one"):
        channel_in_use(store, "candidate")
    promote(store, release_id)
    assert channel_in_use(store, "production").release_id == release_id


def test_a_stale_expectation_moves_nothing(store, releases):
    promote(store, releases[0])
    with pytest.raises(ConflictError, match=f"points at {releases[0]}"):
        move_channel(store, "production", releases[2], expect=releases[1])
    with pytest.raises(ConflictError, match="points at"):
        move_channel(store, "production", releases[2], expect=None)
    assert read_channel(store, "production").release_id == releases[0]


def test_moving_to_the_same_release_is_no_move(store, releases):
    promote(store, releases[0])
    before = store.get("channels/production.json")
    promote(store, releases[0])
    assert store.get("channels/production.json") == before


def test_damaged_or_unknown_releases_are_never_pointed_at(store, releases):
    promote(store, releases[0])
    promote(store, releases[1])
    store.local(f"releases/{releases[0]}/items.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"items\.parquet"):
        rollback(store)
    for bad in ("2022-05-01-000000000000", "../../etc/passwd"):
        with pytest.raises(ValueError, match="release"):
            promote(store, bad)
    with pytest.raises(ValueError, match="unknown channel"):
        promote(store, releases[1], channel="produktion")
    assert read_channel(store, "production").release_id == releases[1]


def test_an_unreadable_pointer_is_an_error_not_an_empty_channel(store, releases):
    promote(store, releases[0])
    store.local("channels/production.json").write_bytes(b'{"name": ')
    with pytest.raises(ValueError, match="unreadable"):
        read_channel(store, "production")


COUNT = """
import json, sys
from pathlib import Path
from releases.object_store import ConflictError, DirectoryStore, digest_bytes

store, won, lost = DirectoryStore(Path(sys.argv[1])), 0, 0
while won < 60:
    data = store.get("channels/counter.json")
    value = json.loads(data) if data else 0
    try:
        store.compare_and_swap("channels/counter.json", str(value + 1).encode(), digest_bytes(data) if data else None)
        won += 1
    except ConflictError:
        lost += 1
print(lost)
"""


def test_two_processes_lose_no_update(tmp_path):
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-c", COUNT, str(tmp_path / "store")]
    env = os.environ | {"PYTHONPATH": str(repository)}
    racers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    lost = sum(int(racer.communicate(timeout=60)[0]) for racer in racers)
    assert [racer.returncode for racer in racers] == [0, 0]
    assert json.loads(DirectoryStore(tmp_path / "store").get("channels/counter.json")) == 120, f"{lost} conflicts seen"


def test_store_objects(store, tmp_path):
    store.create_only_put("a/b.json", b"1")
    with pytest.raises(ConflictError, match="changed meanwhile"):
        store.create_only_put("a/b.json", b"2")
    store.compare_and_swap("a/b.json", b"3", digest_bytes(b"1"))
    (tmp_path / "f").write_bytes(b"file")
    store.put_file("a/f", tmp_path / "f")
    assert (store.get("a/b.json"), store.get("a/f"), store.get("a/none")) == (b"3", b"file", None)
    assert store.children("a") == ["b.json", "f"]
    with pytest.raises(ValueError, match="safe object key"):
        store.get("../outside")
