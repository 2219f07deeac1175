"""Run one pipeline of a day on this machine: compile it, then execute the compiled pipeline with KFP's local runner.

    python -m kfp_components.run --pipeline features --day 2022-05-05 --source kuairand-pure --data DATA --seed 0

Each component is a process of its own in this environment (SubprocessRunner without a venv). Exit status 1 on failure;
which step failed, why, and its log stand in var/runs/<day>/progress.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kfp_components.artifacts import report_failure
from kfp_components.context import Run
from kfp_components.digest import data_fingerprint, digest_value
from kfp_components.ending import end_with_reader
from kfp_components.lock import held
from kfp_components.step import Outcome
from kfp_components.workspace import IMPORTS, PIPELINES, STEPS, Workspace

TRAFFIC_DEFAULTS: dict[str, Any] = {"servers": "", "percents": "10", "answers": 500, "hours": 2.0}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    end_with_reader(children_first=True)
    try:
        workspace = Workspace(root=args.root, source=args.source)
        run = Run(workspace=workspace, day=args.day, seed=args.seed, fresh_from=args.fresh_from)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        with held(workspace.base / ".pipeline.lock", f"pipeline {args.pipeline} of {args.day}", wait_s=args.wait_s):
            if args.refit:
                workspace.request_refit(args.day)
            values = arguments(run, args.pipeline, args.data, traffic=vars(args))
            execute(args.pipeline, values)
    except ValueError as error:
        report_failure(workspace, args.day, PIPELINES[args.pipeline][0], error)
        return 1
    except RuntimeError as error:
        # KFP's word that a task failed; the task has reported its own error.
        print(error, file=sys.stderr)
        return 1
    return 0


def arguments(run: Run, pipeline: str, data: str, *, traffic: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a pipeline. ValueError names the step of an earlier pipeline that has to run first.

    `traffic`: servers, percents, answers and hours of a rollout, for the pipelines that take them."""
    w = run.workspace
    values: dict[str, Any] = {
        "day": run.day,
        "root": str(Path(w.root).resolve()),
        "source": w.source,
        "seed": run.seed,
        "fresh_from": run.fresh_from,
    }
    if pipeline == "features":
        if not data:
            raise ValueError("the features pipeline reads logs: give --data <folder in a known layout>")
        folder = Path(data).resolve()
        values |= {"data": str(folder), "data_digest": digest_value(data_fingerprint(folder))}
    if pipeline == "tokenizer":
        values["refit"] = w.refit_requested(run.day)
    wanted = {"shadow": tuple(TRAFFIC_DEFAULTS), "canary": tuple(TRAFFIC_DEFAULTS), "promote": ("servers",)}
    values |= {name: (traffic or TRAFFIC_DEFAULTS)[name] for name in wanted.get(pipeline, ())}
    for name, step in IMPORTS[pipeline].items():
        outcome = Outcome.read(w.step_dir(run.day, step))
        values |= {f"{name}_uri": str(outcome.path), f"{name}_digest": outcome.digest}
    return values


def execute(pipeline: str, values: dict[str, Any]) -> None:
    """Compile and run; RuntimeError names the task that failed. What KFP keeps of a run is thrown away after it."""
    from kfp import components, local

    from kfp_components.compile import compile_pipeline

    # Threads that spin while they wait multiply the time of small training steps when cores are shared (4x measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Components run in this very environment, whatever image they name for a cluster.
    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom or non-Python")
    with tempfile.TemporaryDirectory(prefix="onerec-kfp-") as folder:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder, raise_on_error=True)
        components.load_component_from_text(without_retries(compile_pipeline(pipeline, Path(folder))))(**values)


def without_retries(package: Path) -> str:
    """The pipeline as it runs on one machine: a step that failed here fails again, and waiting would hide it."""
    spec = next(yaml.safe_load_all(package.read_text()))
    for dag in [spec["root"], *spec["components"].values()]:
        for task in dag.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump(spec)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, choices=PIPELINES)
    parser.add_argument("--day", required=True, help="YYYY-MM-DD")
    parser.add_argument("--root", default=os.environ.get("ONEREC_ROOT", "var"), help="workspace folder (default: var)")
    parser.add_argument("--source", default="simulated", help="name of the source in the workspace")
    parser.add_argument("--data", default="", help="folder with the logs (features pipeline only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--refit", action="store_true", help="fit the codebooks anew on this day, now and in every rerun"
    )
    parser.add_argument(
        "--wait-s", type=float, default=0.0, help="how long to wait for another pipeline of this workspace (default: 0)"
    )
    for name, default in TRAFFIC_DEFAULTS.items():
        help = "of a rollout: see serving/stages.py"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=help)
    parser.add_argument("--fresh-from", default="", choices=("", *STEPS), help="from this step on reuse nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
