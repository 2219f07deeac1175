"""Stands where `kfp_components.run` would in tests of scheduling: the real steps' machinery around tiny bodies.

A day's log is `<data>/<day>.txt`: its text goes into the lake; "poison" fails validation; "slow" stops in the middle of
the partition's write until the file changes, and says so by `<data>/<day>.writing`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa

from datasets.partitions import partition_path, write_partition
from kfp_components.artifacts import report_failure
from kfp_components.context import Run
from kfp_components.ending import end_with_reader
from kfp_components.lineage import features_before
from kfp_components.lock import held
from kfp_components.run import _parser
from kfp_components.workspace import PIPELINES, Workspace


def main() -> int:
    args = _parser().parse_args()
    end_with_reader(children_first=True)
    workspace = Workspace(root=args.root, source=args.source)
    run = Run(workspace=workspace, day=args.day, seed=args.seed, fresh_from=args.fresh_from)
    step = PIPELINES[args.pipeline][0]
    try:
        with held(workspace.base / ".pipeline.lock", args.pipeline, wait_s=args.wait_s):
            for step in PIPELINES[args.pipeline]:
                tiny(run, step, Path(args.data))
    except ValueError as error:
        report_failure(workspace, args.day, step, error)
        return 1
    return 0


def tiny(run: Run, step: str, data: Path) -> None:
    log = data / f"{run.day}.txt"
    if step == "ingest":
        features_before(run.workspace, run.day)  # days in order, as the real one asks for
    folder = partition_path(run.workspace.lake / "impressions", date.fromisoformat(run.day))

    def body(out: Path, progress) -> dict:
        text = log.read_text()
        if step == "ingest":
            write_partition(folder, rows(log, text))
        if step == "validate" and "poison" in text:
            raise ValueError(f"{log} holds poison: mend the log")
        (out / "what.txt").write_text(f"{step} of {run.day}: {text}")
        return {"critical_failed": 0, "interval": [f"{run.day}T00:00:00+00:00", f"{run.day}T23:00:00+00:00"]}

    outside = (lambda _: [folder / "part-0.parquet"]) if step == "ingest" else None
    run.step(
        step, inputs=[], rooms=("datasets/errors.py",), settings={"log": log.read_text()}, body=body, outside=outside
    )


def rows(log: Path, text: str) -> Iterator[pa.Table]:
    yield pa.table({"user_id": [1, 2], "text": [text, text]})
    if text == "slow":
        log.with_suffix(".writing").touch()
        while log.read_text() == "slow":
            time.sleep(0.05)
    yield pa.table({"user_id": [3], "text": [text]})


if __name__ == "__main__":
    sys.exit(main())
