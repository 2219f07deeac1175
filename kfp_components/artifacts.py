"""Between KFP and a step: artifacts are the outcome folders of steps, digests make sure that they are the right ones.

A component's body is one call: `return run_component(step, day=..., inputs={"tables": (tables, digest)}, output=...)`.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from kfp_components.context import Run
from kfp_components.ending import end_with_reader
from kfp_components.step import LOG_NOTE, Events, Outcome
from kfp_components.workspace import Workspace


def run_component(
    step: Callable[..., Outcome],
    *,
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    inputs: Mapping[str, tuple[dsl.Artifact, str]],
    output: dsl.Artifact,
    metrics: dsl.Metrics | None = None,
    page: str = "",
    **settings: Any,
) -> str:
    """Run one step on the outcomes that the artifacts name; returns the digest of its own outcome.

    `output` becomes the step's folder, or the file `page` in it. Any failure is written to the progress file, with the
    log that holds its trace, and ends the process with status 1.
    """
    end_with_reader()
    workspace = Workspace(root=root, source=source)
    name = step.__module__.split(".")[-2]
    try:
        run = Run(workspace=workspace, day=day, seed=seed, fresh_from=fresh_from)
        outcome = step(run, **{k: opened(k, *artifact) for k, artifact in inputs.items()}, **settings)
    except BaseException as error:
        if not any(note.startswith(LOG_NOTE) for note in getattr(error, "__notes__", [])):
            report_failure(workspace, day, name, error)
        sys.exit(1)
    output.uri = str(outcome.path / page)
    output.metadata |= {"step": name, "day": day, "digest": outcome.digest, "seconds": outcome.seconds}
    for key, value in outcome.metrics.items():
        if metrics is not None and isinstance(value, int | float) and math.isfinite(value):
            metrics.log_metric(key, value)
    return outcome.digest


def opened(name: str, artifact: dsl.Artifact, digest: str) -> Outcome:
    """The outcome behind an input artifact; ValueError when it is not the one that the pipeline was started on."""
    outcome = Outcome.read(Path(artifact.uri))
    if outcome.digest != digest:
        raise ValueError(
            f"input {name} ({artifact.uri}) is {outcome.digest[:12]}, the pipeline was started on {digest[:12]};"
            " another run rewrote it; start this pipeline again"
        )
    return outcome


def report_failure(workspace: Workspace, day: str, step: str, error: BaseException) -> None:
    """Write a failure that happened outside a step's body into its log and the progress file."""
    log = workspace.log(day, step)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)))
    Events(workspace.progress(day), step).failed(error, log)
    print(f"{step}: {error}", file=sys.stderr)
