"""A run on Kubeflow Pipelines, from Airflow's side: its name, its parameters, and the trigger that follows it.

The name is the identity: pipeline, day, and a digest of the compiled package (the code), the workspace and the inputs.
A second trigger of the day, a retry and a restarted worker all find the run by it; other code or other data is another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from operators.kfp_api import LIVE, KfpApi, KfpRefused, KfpUnavailable
from operators.process import REPOSITORY
from operators.wait import outcome

HOST = "ONEREC_KFP_HOST"  # address of the KFP API server; without it pipelines run as local processes
PACKAGES = "ONEREC_KFP_PACKAGES"  # folder of the compiled packages, if it is not kfp_components/compiled
POLL_S, FLAPPING_S = 20.0, 1800.0


def package(pipeline: str) -> Path:
    """The compiled package that was reviewed and committed."""
    return Path(os.environ.get(PACKAGES) or REPOSITORY / "kfp_components" / "compiled") / f"{pipeline}.yaml"


def parameters(pipeline: str, *, day: str, root: str, source: str, **more: Any) -> dict[str, Any]:
    """The arguments of a pipeline: the day's, and place and digest of the outcomes it starts from.

    ValueError names the step of an earlier pipeline that has not run.
    """
    table = json.loads((package(pipeline).parent / "imports.json").read_text())[pipeline]
    values: dict[str, Any] = {"day": day, "root": root, "source": source, **more}
    for name, step in table["imports"].items():
        file = outcome(root, source, day, step)
        try:
            found = json.loads(file.read_text())
        except FileNotFoundError:
            raise ValueError(f"{file} does not exist: step {step} of {day} has to run first") from None
        values |= {f"{name}_uri": str(file.parent), f"{name}_digest": found["digest"]}
    return {name: value for name, value in values.items() if name in table["parameters"]}


def data_digest(data: str) -> str:
    """Digest over names, sizes and times of the log files, so that mended logs are another run; "" for an object store,
    where the ingest step looks itself."""
    folder = REPOSITORY / data
    if not data or not folder.is_dir():
        return ""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found = {str(p.relative_to(folder)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def run_name(pipeline: str, day: str, values: dict[str, Any], again: str = "") -> str:
    """`again`: the Airflow run that asked for a step to be run afresh, which an older success does not answer."""
    identity = [hashlib.sha256(package(pipeline).read_bytes()).hexdigest(), values, again]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"onerec-{pipeline}-{day}-{digest[:12]}"


class KfpRunTrigger(BaseTrigger):
    """Follows a run until it has ended, through any number of failed calls; only a long silence ends it.

    It holds nothing but the run's id, so a restarted triggerer goes on where the last one stopped. When a person clears
    or fails the waiting task, the run is cancelled; when the triggerer restarts, it is not.
    """

    def __init__(self, host: str, run_id: str, poll_s: float = POLL_S, flapping_s: float = FLAPPING_S) -> None:
        super().__init__()
        self.host, self.run_id, self.poll_s, self.flapping_s = host, run_id, poll_s, flapping_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        values = {"host": self.host, "run_id": self.run_id, "poll_s": self.poll_s, "flapping_s": self.flapping_s}
        return "operators.kfp_run.KfpRunTrigger", values

    async def run(self) -> AsyncIterator[TriggerEvent]:
        api, heard = KfpApi(self.host), time.monotonic()
        while True:
            try:
                found = await asyncio.to_thread(api.get, self.run_id)
                heard = time.monotonic()
                if found.get("state", "RUNNING") not in LIVE:
                    yield TriggerEvent(ending(found))
                    return
            except KfpRefused as error:  # the server knows no such run (any more)
                yield TriggerEvent({"run_id": self.run_id, "state": "LOST", "error": str(error), "tasks": []})
                return
            except KfpUnavailable as error:
                if time.monotonic() - heard > self.flapping_s:
                    silent = f"no answer for {self.flapping_s:.0f} s: {error}"
                    yield TriggerEvent({"run_id": self.run_id, "state": "SILENT", "error": silent, "tasks": []})
                    return
            await asyncio.sleep(self.poll_s)

    async def on_kill(self) -> None:
        await asyncio.to_thread(KfpApi(self.host, timeout_s=10.0).terminate, self.run_id)


def ending(run: dict[str, Any]) -> dict[str, Any]:
    """What the task needs of a run that has ended: its state, its error, and the tasks that failed."""
    details = (run.get("run_details") or {}).get("task_details") or []
    failed = sorted({t.get("display_name", "?") for t in details if t.get("state") == "FAILED"} - {"root"})
    error = (run.get("error") or {}).get("message", "")
    return {"run_id": run["run_id"], "state": run.get("state", "?"), "error": error, "tasks": failed}
