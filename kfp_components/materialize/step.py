"""Materialize a day: `feast materialize` for the explicit interval, from the feature tables into the online store."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome

ROOMS = ("feature_repo", "datasets/contract.py", "datasets/partitions.py")


def run(run: Run, *, features: Outcome) -> Outcome:
    """Writes materialize.json (the interval and the feature tables behind it)."""
    w = run.workspace
    start, end = features.metrics["interval"]

    def body(out: Path, progress) -> dict[str, Any]:
        from feature_repo.store import materialize

        progress(f"from {start} to {end}")
        found = materialize(
            features=w.features,
            feature_store=w.feature_store,
            start=dt.datetime.fromisoformat(start),
            end=dt.datetime.fromisoformat(end),
        )
        kept = {"interval": [start, end], "features": features.digest}
        (out / "materialize.json").write_text(json.dumps(kept, indent=1) + "\n")
        return dict(found or {})

    return run.step("materialize", inputs=[features], rooms=ROOMS, body=body, state=[w.feature_store])
