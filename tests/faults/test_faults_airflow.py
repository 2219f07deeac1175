"""Airflow itself goes away while a day's run works on Kubeflow Pipelines, and a person clears the task meanwhile."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault import cases, fault, no_airflow

from cli.airflow_run import prepare
from cli.scheduler import Airflow, scheduler
from kfp_components.digest import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "tests" / "dags")]
from fake_kfp import FakeKfp  # noqa: E402

DAG, DAY = "onerec_tokenizer", "2022-05-05"
pytestmark = pytest.mark.timeout(1800)


@fault(area="airflow", needs=no_airflow,
       injection="SIGKILL of scheduler, triggerer, workers and API while a run works on KFP; later the task is cleared by hand",
       expected="started again, Airflow follows the same run, by its id; clearing the task cancels it, and one other takes its place")  # fmt: skip
def airflow_killed_while_a_run_works(tmp_path: Path) -> str:
    """Real scheduler, triggerer, DAG, operator and trigger; only the API server of KFP is small."""
    root = tmp_path / "var"
    for step in ("ingest", "pathways", "materialize"):
        folder = root / "logs" / "days" / DAY / step
        folder.mkdir(parents=True)
        (folder / "_outcome.json").write_text(json.dumps({"digest": f"digest-{step}"}))
    conf = {"root": str(root), "source": "logs", "wait_hours": 0}
    home = prepare(root)
    with FakeKfp() as kfp, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEREC_KFP_HOST", kfp.url)
        with scheduler(home, tmp_path / "first.log", until=DAY) as first:
            body = {"logical_date": f"{DAY}T00:00:00Z", "conf": conf}
            run_id = first.call("POST", f"/dags/{DAG}/dagRuns", body)["dag_run_id"]
            first.call("PATCH", f"/dags/{DAG}", {"is_paused": False})
            until(lambda: state(first, run_id) == "deferred" and asked(kfp))
            kill(first)
        asked_before = asked(kfp)
        with scheduler(home, tmp_path / "again.log", until=DAY) as again:
            until(lambda: asked(kfp) > asked_before)
            assert list(kfp.runs) == ["run-000"] and kfp.live() == ["run-000"]

            clear = {"dry_run": False, "task_ids": ["tokenizer"], "dag_run_id": run_id, "only_failed": False}
            again.call("POST", f"/dags/{DAG}/clearTaskInstances", clear)
            until(lambda: kfp.runs["run-000"]["state"] == "CANCELED" and len(kfp.runs) == 2)
            until(lambda: state(again, run_id) == "deferred")
            kfp.finish("run-001")
            until(lambda: state(again, run_id) == "success")
        names = {run["display_name"] for run in kfp.runs.values()}
        assert len(kfp.runs) == 2 and len(names) == 1, kfp.runs
    return "followed on after the restart; 1 run cancelled by clearing, 1 in its place"


def asked(kfp: FakeKfp) -> int:
    """How often the trigger has asked for the first run."""
    return kfp.calls.count("GET /runs/run-000")


def state(of: Airflow, run_id: str) -> Any:
    with contextlib.suppress(OSError):  # a busy machine answers late: asked again
        return of.call("GET", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/tokenizer")["state"]


def kill(one: Airflow) -> None:
    assert one.process is not None
    tree = [psutil.Process(one.process.pid), *psutil.Process(one.process.pid).children(recursive=True)]
    for process in tree:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(tree, timeout=20)
    one.process.wait(20)


def until(true: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)


test_fault = cases(__name__)
