"""Promote a day: production moves when all gates passed and, where servers are watched, the canary did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import open_store
from kfp_components.step import Outcome
from releases import rollout
from releases.channels import promote, read_channel
from releases.object_store import ObjectStore


def run(run: Run, *, release: Outcome, decision: Outcome, servers: str) -> Outcome:
    """Writes decision.json with the channels. `servers` empty: nobody serves yet (a first day, one machine), and the
    gates alone decide. Else ValueError when the rollout of this very release has not passed."""
    store, release_id = open_store(run.workspace), release.metrics["release_id"]

    def body(out: Path, progress) -> dict[str, Any]:
        reason = "all gates passed"
        if decision.metrics["passed"] and servers:
            now = rollout.read(store)
            if now is None or (now.release_id, now.stage) != (release_id, "passed"):
                where = "nobody began it" if now is None else f"it is at {now.stage} of {now.release_id}"
                raise ValueError(f"the rollout of {release_id} has not passed ({where}); run shadow and canary first")
            reason = "all gates passed, and the canary"
        candidate, before = (read_channel(store, channel) for channel in ("candidate", "production"))
        moved = {"candidate": candidate.release_id if candidate else None}
        moved |= {"production": before.release_id if before else None}
        if decision.metrics["passed"]:
            moved["production"] = advance(store, "production", release_id, reason)
        for channel, now_at in moved.items():
            progress(f"{channel} is {now_at}" if now_at == release_id else f"{channel} stays at {now_at}")
        found = {**decision.metrics, "channels": {name: at for name, at in moved.items() if at}}
        (out / "decision.json").write_text(json.dumps(found, indent=1) + "\n")
        return found

    settings = {"servers": bool(servers)}
    return run.step("promote", inputs=[release, decision], rooms=("releases",), settings=settings, body=body)


def advance(store: ObjectStore, channel: str, release_id: str, reason: str) -> str:
    """Point a channel at a release unless it names one of a later day (no backfill moves it back). Returns where."""
    now = read_channel(store, channel)
    if now is not None and now.release_id[:10] > release_id[:10]:
        return now.release_id
    return promote(store, release_id, channel=channel, reason=reason).release_id
