"""Tell how a pipeline ended: a line in the run's `pipelines.jsonl`, and a webhook when it failed.

    run(pipeline="training", day="2022-05-05", root="var", source="simulated", status=status)

The exit task of every pipeline: it runs whatever happened before it. ONEREC_ALERT_URL: where failures are POSTed as
JSON ({"alert", "pipeline", "day", "text"}). A webhook that is down fails nothing; the line is there all the same.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import urllib.request
from typing import Protocol

from kfp_components.workspace import PIPELINES, Workspace

FILE, TIMEOUT_S = "pipelines.jsonl", 10.0
GOOD = "SUCCEEDED"


class Status(Protocol):
    """What is used of KFP's PipelineTaskFinalStatus."""

    state: str
    pipeline_job_resource_name: str
    error_message: str | None


def run(*, pipeline: str, day: str, root: str, source: str, status: Status) -> str:
    """Write the line, tell the webhook; returns the state."""
    workspace = Workspace(root=root, source=source)
    failed = _failed(workspace, pipeline, day) if status.state != GOOD else {}
    entry = {
        "pipeline": pipeline,
        "state": status.state,
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "run": status.pipeline_job_resource_name,
    }
    if status.state != GOOD:
        entry["step"] = failed.get("step", "?")
        entry["error"] = failed.get("error") or status.error_message or "no word"
    path = workspace.run_dir(day) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:  # one short write: lines of two pipelines do not mix
        f.write(json.dumps(entry) + "\n")
    if status.state != GOOD:
        log = workspace.run_dir(day) / "logs" / f"{entry['step']}.log"
        text = (
            f"pipeline {pipeline} of {day} ended as {status.state} at step {entry['step']}: {entry['error']};"
            f" next: read {log}, mend it, and clear the task of {pipeline} in Airflow"
        )
        print(text, flush=True)
        _post({"alert": "pipeline_failed", "pipeline": pipeline, "day": day, "text": text})
    return status.state


def _failed(workspace: Workspace, pipeline: str, day: str) -> dict[str, str]:
    """The newest failure that a step of this pipeline told; empty when none did (killed, or never started)."""
    path, found = workspace.progress(day), dict[str, str]()
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # half a line of a killed run
            continue
        if event.get("step") in PIPELINES[pipeline]:
            found = event if event["event"] == "failed" else {} if event["event"] == "started" else found
    return found


def _post(body: dict[str, str]) -> None:
    if not (url := os.environ.get("ONEREC_ALERT_URL")):
        return
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except OSError as error:
        print(f"the webhook of ONEREC_ALERT_URL did not take it: {error}", flush=True)
