"""What the tests of steps share: outcomes that earlier steps left, without having run them.

tables = left(run, "ingest", {"days": ["2022-05-05"]})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.partitions import write_partition
from kfp_components.context import Run
from kfp_components.step import Outcome
from kfp_components.workspace import Workspace
from tests.releases.made_up import made_up


def left(run: Run, step: str, metrics: Mapping[str, Any] | None = None, files: tuple[str, ...] = ()) -> Outcome:
    """The outcome of a step with these metrics and small files of these names."""

    def body(out: Path, progress) -> Mapping[str, Any]:
        (out / "made.txt").write_text(f"{step} of {run.day}")
        for name in files:
            made_up(out / name, f"{step} of {run.day}")
        return metrics or {}

    return run.step(step, inputs=[], rooms=("releases",), settings={"metrics": metrics}, body=body)


def partition(w: Workspace, table: str, day: str) -> Path:
    """A small partition of a table, with its manifest."""
    file = w.partition(table, day)
    write_partition(file.parent, pa.table({"text": [f"{table} of {day}"]}))
    return file
