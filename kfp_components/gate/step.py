"""Judge a day: the gates decide about the release from its numbers, and it becomes the candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import open_store
from kfp_components.promote.step import advance
from kfp_components.step import Outcome
from releases.gates import decide, record_decision
from releases.manifest import load_release


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
        advance(store, "candidate", release_id, "published")
        for failure in decision.failures():
            progress(f"GATE FAILED, not for production: {failure}")
        found = {"release_id": release_id, **decision.as_dict()}
        (out / "decision.json").write_text(json.dumps(found, indent=1) + "\n")
        return found

    return run.step("gate", inputs=[release, quality, evaluation, check], rooms=("releases",), body=body)
