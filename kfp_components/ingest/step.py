"""Ingest a day: the source's logs into the contract tables of the lake."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.tombstones import Tombstones
from kfp_components.context import Run
from kfp_components.digest import data_fingerprint
from kfp_components.lineage import features_before
from kfp_components.step import Outcome


def run(run: Run, *, data: str) -> Outcome:
    """On a first day all log days up to it, later the day alone. Writes ingest.json (days, rows, counts by rule)."""
    bootstrap = features_before(run.workspace, run.day) is None
    source, lake = Path(data), run.workspace.lake
    forgotten = Tombstones.read(run.workspace.base).digest()
    gone = {"forgotten": forgotten} if forgotten else {}

    def body(out: Path, progress) -> dict[str, Any]:
        from datasets.ingest import ingest
        from datasets.simulator import RECORD

        found = ingest(
            source=source, day=dt.date.fromisoformat(run.day), lake=lake, bootstrap=bootstrap, progress=progress
        )
        (out / "ingest.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        # Numbers on simulated logs must say so wherever they appear.
        return {"bootstrap": bootstrap, "simulated": (source / RECORD).is_file(), **found}

    def tables(metrics: Mapping[str, Any]) -> list[Path]:
        return [lake / table / "part-0.parquet" for table in metrics["tables"]]

    return run.step(
        "ingest",
        inputs=[],
        rooms=("datasets",),
        # Names, sizes and times of the files, not the folder's own name: a moved source is the same source.
        settings={"files": data_fingerprint(source), "bootstrap": bootstrap, **gone},
        body=body,
        outside=tables,
    )
