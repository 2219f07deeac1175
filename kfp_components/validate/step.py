"""Validate a day: Great Expectations over the lake tables; a failed critical expectation stops the day."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome
from kfp_components.validate.pathways import FOLDER


def run(run: Run, *, tables: Outcome) -> Outcome:
    """Writes results.json, and Data Docs into the run's folder (also when the day is stopped). ValueError stops it."""
    docs = run.workspace.run_dir(run.day) / FOLDER

    def body(out: Path, progress) -> dict[str, Any]:
        from data_quality.checkpoint import require, validate

        found = validate(lake=run.workspace.lake, day=run.day, days=tables.metrics["days"], out=docs, progress=progress)
        require(found)
        (out / "results.json").write_text(json.dumps(found, indent=1, sort_keys=True, default=str) + "\n")
        return found

    return run.step(
        "validate", inputs=[tables], rooms=("data_quality", "datasets"), body=body, state=[docs / "docs" / "index.html"]
    )
