"""Promote a day: the gates judge the release; it becomes the candidate, and production when all of them pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import open_store
from kfp_components.step import Outcome
from releases.channels import promote, read_channel
from releases.gates import decide, record_decision
from releases.manifest import load_release
from releases.object_store import ObjectStore


def run(run: Run, *, release: Outcome, quality: Outcome, evaluation: Outcome, check: Outcome) -> Outcome:
    """Writes decision.json. A failed gate fails nothing: the release waits as candidate, and the run says so."""
    store, release_id = open_store(run.workspace), release.metrics["release_id"]

    def body(out: Path, progress) -> dict[str, Any]:
        folder, _ = load_release(store, release_id)
        tokenize, parity = run.workspace.outcome(run.day, "tokenize"), folder / "serving" / "parity.json"
        decision = decide(
            metrics=evaluation.metrics,
            data_quality=quality.metrics,
            serving_check=check.metrics,
            tokenizer=Outcome.read(tokenize.parent).metrics if tokenize.is_file() else None,
            parity=json.loads(parity.read_text()) if parity.is_file() else None,
        )
        record_decision(store, release_id, decision)
        moved = {"candidate": advance(store, "candidate", release_id, "published")}
        if decision.passed:
            moved["production"] = advance(store, "production", release_id, "all gates passed")
        for channel, now in moved.items():
            progress(f"{channel} is {now}" if now == release_id else f"{channel} stays at the later {now}")
        for failure in decision.failures():
            progress(f"GATE FAILED, not promoted to production: {failure}")
        found = {"release_id": release_id, **decision.as_dict(), "channels": moved}
        (out / "decision.json").write_text(json.dumps(found, indent=1) + "\n")
        return found

    return run.step("promote", inputs=[release, quality, evaluation, check], rooms=("releases",), body=body)


def advance(store: ObjectStore, channel: str, release_id: str, reason: str) -> str:
    """Point a channel at a release unless it names one of a later day (no backfill moves it back). Returns where."""
    now = read_channel(store, channel)
    if now is not None and now.release_id[:10] > release_id[:10]:
        return now.release_id
    return promote(store, release_id, channel=channel, reason=reason).release_id
