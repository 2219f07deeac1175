"""The rollout of a candidate: which share of the traffic it meets now, one small object that all servers follow.

    move(store, "2022-05-05-0123456789ab", "shadow", percent=10, reason="gates passed")
    move(store, "2022-05-05-0123456789ab", "stopped", reason="empty answers")        read(store)

shadow (answers are compared, not shown) -> canary (a share of the users, in steps) -> passed, or stopped at any time.
Servers read it with the channels (serving/controller.py). A release that was stopped is never shown to users again: it
does not change, so the next try would end the same.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from releases.manifest import canonical_json, check_release_id
from releases.object_store import ConflictError, ObjectStore, digest_bytes

KEY = "channels/rollout.json"
STAGES = ("shadow", "canary", "passed", "stopped")
AFTER = {"shadow": ("shadow",), "canary": ("shadow", "canary"), "passed": ("canary", "passed")}  # of the same release
KEPT = 1000  # moves in the history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """Where the rollout of `release_id` is; `percent` of the traffic it meets; `history`: every move of late."""

    release_id: str
    stage: str
    percent: float
    history: list[dict[str, Any]]

    @property
    def shadow_percent(self) -> float:
        return self.percent if self.stage == "shadow" else 0.0

    @property
    def canary_percent(self) -> float:
        return self.percent if self.stage == "canary" else 0.0


def read(store: ObjectStore) -> Rollout | None:
    """None when there was never one. ValueError for an unreadable object: servers then keep what they have."""
    if (data := store.get(KEY)) is None:
        return None
    try:
        found = Rollout(**json.loads(data))
        check_release_id(found.release_id)
        if found.stage not in STAGES or not 0 <= found.percent <= 100:
            raise ValueError(f"stage {found.stage!r} at {found.percent} %")
        return found
    except (TypeError, ValueError) as error:
        raise ValueError(f"{KEY} is unreadable ({error}); remove it, and begin the rollout again") from None


def move(
    store: ObjectStore,
    release_id: str,
    stage: str,
    *,
    percent: float = 0.0,
    reason: str,
    seen: Mapping[str, Any] | None = None,
) -> Rollout:
    """Move the rollout of a release on; `seen`: the numbers behind it, kept in the history.

    ValueError for a stage out of turn or a release that was stopped before; ConflictError when another release's
    rollout has begun, or somebody moved it meanwhile. Nothing is written then.
    """
    check_release_id(release_id)
    if stage not in STAGES or not 0 <= percent <= 100:
        raise ValueError(f"stage {stage!r} at {percent} %; the stages are {', '.join(STAGES)}, at 0 to 100 %")
    data, now = store.get(KEY), read(store)
    mine = now.stage if now and now.release_id == release_id else None
    if stage == "shadow":
        if (why := stopped(now, release_id)) is not None:
            raise ValueError(f"release {release_id} was stopped: {why}; it is not tried again, publish another")
    elif now is not None and mine is None:
        raise ConflictError(f"the rollout is now of {now.release_id}, not of {release_id}; look before you go on")
    elif stage != "stopped" and mine not in AFTER[stage]:
        raise ValueError(f"release {release_id} is at {mine or 'no stage'}; {stage} comes after {AFTER[stage][0]}")
    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    entry = {"at": at, "release_id": release_id, "stage": stage, "percent": percent, "reason": reason}
    history = [*(now.history if now else []), entry | ({"seen": dict(seen)} if seen else {})][-KEPT:]
    moved = Rollout(release_id=release_id, stage=stage, percent=percent, history=history)
    store.compare_and_swap(KEY, canonical_json(dataclasses.asdict(moved)), None if data is None else digest_bytes(data))
    return moved


def stopped(now: Rollout | None, release_id: str) -> str | None:
    """Why a release was stopped, None if it never was."""
    found = [
        m["reason"] for m in (now.history if now else []) if (m["release_id"], m["stage"]) == (release_id, "stopped")
    ]
    return found[-1] if found else None
