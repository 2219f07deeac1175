"""Pathways of a day: the feature tables of the four user pathways, registered in Feast, and the training sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import features_before
from kfp_components.step import Outcome


def run(run: Run, *, tables: Outcome, quality: Outcome) -> Outcome:
    """Feature tables as of the end of the day, point-in-time training and evaluation sets. Writes pathways.json."""
    w, before = run.workspace, features_before(run.workspace, run.day)

    def body(out: Path, progress) -> dict[str, Any]:
        from feature_repo.build import build_features
        from feature_repo.config import PathwaysConfig
        from kfp_components.validate.pathways import check_pathways

        found = build_features(
            lake=w.lake,
            features=w.features,
            feature_store=w.feature_store,
            day=run.day,
            ingest=tables.metrics,
            previous=before.metrics if before else None,
            bootstrap=before is None,
            config=(config := PathwaysConfig()),
            progress=progress,
        )
        found["quality"] = check_pathways(run, progress)
        kept = {key: found[key] for key in ("written", "end_of_day", "interval")}
        kept["config"] = dataclasses.asdict(config)
        (out / "pathways.json").write_text(json.dumps(kept, indent=1, sort_keys=True, default=str) + "\n")
        return found

    def written(metrics: Mapping[str, Any]) -> list[Path]:
        return [w.features / name for name in metrics["written"]]

    return run.step(
        "pathways",
        inputs=[tables, quality, before],
        rooms=("feature_repo", "data_quality", "datasets/contract.py", "datasets/partitions.py"),
        settings={"bootstrap": before is None},
        body=body,
        outside=written,
        state=[w.feature_store],
    )
