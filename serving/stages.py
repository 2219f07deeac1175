"""The two stages in which a candidate meets traffic before it may be promoted: shadow, then canary.

    run_shadow(store, release_id, plan)         run_canary(store, release_id, plan)

Each moves the rollout object (releases/rollout.py), which every server follows, and watches what the servers count
(serving/watch.py). Whatever goes wrong stops the rollout: the servers drop the candidate, production is untouched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from releases import rollout
from releases.channels import promote
from releases.object_store import ObjectStore
from serving.watch import POLL_S, RolloutError, servers, watch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a candidate meets traffic. `servers`: addresses of their metrics (serving/watch.py).

    `percents`: the shares of the traffic, one after the other; `answers`: requests that each share must have seen;
    `limit_s`: within which they must come; `min_overlap`: what shadow's answers must share with production's at least.
    A day's release differs from the one before by much, so the last only catches one that answers something else.
    """

    servers: str
    percents: tuple[float, ...]
    answers: int
    limit_s: float
    min_overlap: float = 0.02
    poll_s: float = POLL_S

    def __post_init__(self) -> None:
        if not self.percents or not all(0 < p <= 100 for p in self.percents):
            raise ValueError(f"percents are {self.percents}; give shares above 0 and up to 100, as in 1,10,50")
        if self.answers < 1 or self.limit_s <= 0:
            raise ValueError(f"answers is {self.answers}, limit_s {self.limit_s}; both must be above 0")


def percents(text: str) -> tuple[float, ...]:
    """`1,10,50` as numbers."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{text!r} are no shares; write them as 1,10,50") from None


def run_shadow(
    store: ObjectStore, release_id: str, plan: Plan, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """Compare the candidate's answers with production's. RolloutError when it must go; the rollout is stopped then."""
    found = _stage(store, release_id, "shadow", plan, progress)
    if found["overlap"] < plan.min_overlap:
        _stop(store, release_id, f"shadow answers share {found['overlap']:.3f} of production's items", found)
    return found


def run_canary(
    store: ObjectStore, release_id: str, plan: Plan, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """Answer a growing share of the users. RolloutError when it must go; else the rollout has passed."""
    found = _stage(store, release_id, "canary", plan, progress)
    rollout.move(store, release_id, "passed", reason="canary answered as asked for", seen=found)
    return found


def _stage(
    store: ObjectStore, release_id: str, stage: str, plan: Plan, progress: Callable[[str], None]
) -> dict[str, Any]:
    promote(store, release_id, channel="candidate", reason=f"{stage} begins")  # verified again; nothing if it is there
    asked = servers(plan.servers)
    found: dict[str, Any] = {}
    for percent in plan.percents:
        rollout.move(store, release_id, stage, percent=percent, reason=f"{stage} at {percent:g} %", seen=found)
        progress(f"{stage} at {percent:g} % of the traffic")
        try:
            found = watch(
                asked,
                release_id,
                stage,
                answers=plan.answers,
                limit_s=plan.limit_s,
                poll_s=plan.poll_s,
                still=lambda: (
                    (now := rollout.read(store)) is not None and (now.release_id, now.stage) == (release_id, stage)
                ),
                progress=progress,
            )
        except RolloutError as error:
            _stop(store, release_id, f"{stage} at {percent:g} %: {error}")
    return found


def _stop(store: ObjectStore, release_id: str, reason: str, seen: dict[str, Any] | None = None) -> None:
    """Take the candidate from all servers, and say so; what is stopped already stays as it was told."""
    now = rollout.read(store)
    if now is None or (now.release_id, now.stage) != (release_id, "stopped"):
        rollout.move(store, release_id, "stopped", reason=reason, seen=seen)
    raise RolloutError(
        f"release {release_id} was taken out, production is untouched: {reason}; next: onerec release show {release_id}"
    )
