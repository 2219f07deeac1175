"""Garbage collection keeps what is live, removes only what a dry run showed, and yields to a promotion."""

from __future__ import annotations

import datetime as dt

import pytest

from cli.main import main
from releases.channels import promote, read_channel
from releases.collect import Keep, collect, plan
from releases.describe import read_manifest
from releases.object_store import ConflictError, StoreError
from releases.removal import mark, removed_at
from tests.releases.conftest import publish_small, write_files

LATER = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)


@pytest.fixture
def releases(store, tmp_path) -> list[str]:
    return [publish_small(store, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in range(1, 7)]


def test_what_stays_and_why(store, releases):
    for release_id in releases[:4]:
        promote(store, release_id)
    promote(store, releases[4], channel="candidate")
    found = plan(store, Keep(days=1, rollbacks=2), LATER)
    assert found.keep == {
        releases[1]: "production may be rolled back to it",
        releases[2]: "production may be rolled back to it",
        releases[3]: "production names it",
        releases[4]: "candidate names it",
        releases[5]: "one of the newest 1 days",
    }
    assert list(found.remove) == [releases[0]] and found.half == {}
    assert plan(store, Keep(days=1, rollbacks=2)).remove == {}  # all are young
    assert plan(store, Keep(), LATER).remove == {}


def test_nothing_goes_without_the_plan_that_was_shown(store, releases):
    keep = Keep(days=2)
    token = plan(store, keep, LATER).token
    promote(store, releases[0])
    with pytest.raises(ValueError, match="look at it first"):
        collect(store, token, keep, LATER)
    assert store.children("releases") == releases
    assert collect(store, plan(store, keep, LATER).token, keep, LATER) == releases[1:4]
    assert store.children("releases") == [releases[0], *releases[4:]]
    gone = [removed_at(store, release_id) is not None for release_id in releases[:5]]
    assert gone == [False, True, True, True, False]
    with pytest.raises(ValueError, match=f"removed release {releases[1]} from this store at 20"):
        read_manifest(store, releases[1])


def test_a_promotion_and_a_removal_at_one_time_never_leave_a_pointer_to_nothing(store, releases, monkeypatch):
    promote(store, releases[5])
    keep = Keep(days=1)
    token = plan(store, keep, LATER).token
    import releases.collect as room

    def promoted_meanwhile(store_, release_id, state):
        if state == "removing" and release_id == releases[1]:
            promote(store_, releases[1])  # after the plan, before the announcement
        mark(store_, release_id, state)

    monkeypatch.setattr(room, "mark", promoted_meanwhile)
    gone = collect(store, token, keep, LATER)
    assert releases[1] not in gone and read_channel(store, "production").release_id == releases[1]
    mark(store, releases[4], "removing") if releases[4] in store.children("releases") else None
    mark(store, releases[5], "removing")
    with pytest.raises(StoreError, match="being removed"):
        promote(store, releases[5])
    assert read_channel(store, "production").release_id == releases[1]


def test_an_announcement_that_comes_during_the_move_takes_the_move_back(store, releases, monkeypatch):
    promote(store, releases[0])
    real = store.compare_and_swap

    def announced(key, data, expect):
        if key.startswith("channels/") and releases[1].encode() in data:
            mark(store, releases[1], "removing")
        return real(key, data, expect)

    monkeypatch.setattr(store, "compare_and_swap", announced)
    with pytest.raises(ConflictError, match="being removed"):
        promote(store, releases[1])
    assert read_channel(store, "production").release_id == releases[0]


def test_the_command(tmp_path, capsys):
    from releases.object_store import DirectoryStore

    made = publish_small(DirectoryStore(tmp_path / "logs" / "store"), write_files(tmp_path / "f", 1))
    assert main(["release", "gc", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"keep     {made}  written just now" in said and "nothing to remove" in said
    assert main(["release", "gc", "--apply", "0" * 12, "--root", str(tmp_path)]) == 1
    assert "look at it first" in capsys.readouterr().err
    assert main(["release", "gc", "--days", "0", "--root", str(tmp_path)]) == 1
