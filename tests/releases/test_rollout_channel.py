"""The rollout object: stages in turn, one release at a time, a stopped one never again, no move lost."""

from __future__ import annotations

import pytest

from releases import rollout
from releases.object_store import ConflictError, DirectoryStore

ONE, TWO = "2022-05-05-0123456789ab", "2022-05-06-ba9876543210"


@pytest.fixture
def store(tmp_path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def test_the_stages_come_in_turn_and_are_kept_with_their_numbers(store) -> None:
    assert rollout.read(store) is None
    with pytest.raises(ValueError, match="canary comes after shadow"):
        rollout.move(store, ONE, "canary", percent=1, reason="too early")
    now = rollout.move(store, ONE, "shadow", percent=10, reason="begins")
    assert (now.shadow_percent, now.canary_percent) == (10, 0)
    with pytest.raises(ValueError, match="passed comes after canary"):
        rollout.move(store, ONE, "passed", reason="too early")
    for percent in (1, 50):
        now = rollout.move(store, ONE, "canary", percent=percent, reason="goes on", seen={"answers": 9})
    assert (now.shadow_percent, now.canary_percent) == (0, 50)
    now = rollout.move(store, ONE, "passed", reason="good")
    assert (now.shadow_percent, now.canary_percent) == (0, 0) and rollout.read(store) == now
    assert [(m["stage"], m["percent"]) for m in now.history] == [
        ("shadow", 10), ("canary", 1), ("canary", 50), ("passed", 0),
    ]  # fmt: skip
    assert now.history[1]["seen"] == {"answers": 9}


def test_a_stopped_release_is_not_tried_again_and_the_next_one_is(store) -> None:
    rollout.move(store, ONE, "shadow", percent=10, reason="begins")
    rollout.move(store, ONE, "stopped", reason="empty answers")
    with pytest.raises(ValueError, match="was stopped: empty answers; it is not tried again"):
        rollout.move(store, ONE, "shadow", percent=10, reason="again")
    with pytest.raises(ValueError, match="is at stopped"):
        rollout.move(store, ONE, "canary", percent=1, reason="again")
    rollout.move(store, TWO, "shadow", percent=10, reason="begins")
    with pytest.raises(ConflictError, match=f"is now of {TWO}"):
        rollout.move(store, ONE, "stopped", reason="late")
    with pytest.raises(ValueError, match="was stopped"):  # also after others had their turn
        rollout.move(store, ONE, "shadow", percent=10, reason="again")


def test_a_race_is_lost_by_name(store, monkeypatch) -> None:
    rollout.move(store, ONE, "shadow", percent=10, reason="begins")
    before = rollout.read(store)
    real = DirectoryStore.get

    def late(self, key):
        data = real(self, key)
        monkeypatch.setattr(DirectoryStore, "get", real)
        rollout.move(store, ONE, "stopped", reason="by hand")  # between the read and the write of the other
        return data

    monkeypatch.setattr(DirectoryStore, "get", late)
    with pytest.raises((ConflictError, ValueError)):
        rollout.move(store, ONE, "canary", percent=1, reason="goes on")
    now = rollout.read(store)
    assert now is not None and before is not None and now.stage == "stopped" and len(now.history) == 2


@pytest.mark.parametrize(
    "data", [b"{", b"{}", b'{"release_id": "../x", "stage": "shadow", "percent": 1, "history": []}']
)
def test_an_unreadable_object_is_an_error(store, data) -> None:
    store.create_only_put(rollout.KEY, data)
    with pytest.raises(ValueError, match=r"channels/rollout.json is unreadable"):
        rollout.read(store)


def test_odd_stages_are_refused(store) -> None:
    for stage, percent in (("half", 1), ("shadow", 101), ("shadow", -1)):
        with pytest.raises(ValueError, match="the stages are"):
            rollout.move(store, ONE, stage, percent=percent, reason="odd")
