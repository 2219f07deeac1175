"""What the steps `shadow` and `canary` have in common: a stage of the rollout, and what the servers saw in it.

meet(run, "shadow", run_shadow, release=..., decision=..., servers=..., percents="1,10", answers=200, hours=1)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import open_store
from kfp_components.step import Outcome
from serving.stages import Plan
from serving.stages import percents as shares


def meet(
    run: Run,
    step: str,
    stage: Callable[..., dict[str, Any]],
    *,
    release: Outcome,
    decision: Outcome,
    servers: str,
    percents: str,
    answers: int,
    hours: float,
) -> Outcome:
    """Writes traffic.json: what the servers saw in `stage` (serving/stages.py). ValueError when the candidate was taken
    out; a release that a gate failed meets no traffic, and the outcome says so."""
    store, release_id = open_store(run.workspace), release.metrics["release_id"]
    plan = Plan(servers=servers, percents=shares(percents), answers=answers, limit_s=3600 * hours)

    def body(out: Path, progress) -> dict[str, Any]:
        found: dict[str, Any] = {"release_id": release_id, "skipped": "a gate failed"}
        if decision.metrics["passed"]:
            found = {"release_id": release_id, **stage(store, release_id, plan, progress)}
        (out / "traffic.json").write_text(json.dumps(found, indent=1) + "\n")
        return found

    settings = {"percents": percents, "answers": answers}
    return run.step(step, inputs=[release, decision], rooms=("releases", "serving"), settings=settings, body=body)
