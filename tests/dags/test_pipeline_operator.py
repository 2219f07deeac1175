"""The operator runs a real child process here: a small script stands where the Python of `ml` would."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException
from operators import process
from operators.pipeline import RunPipelineOperator
from operators.process import ML_PYTHON


def operator(**more) -> RunPipelineOperator:
    return RunPipelineOperator(
        task_id="t", pipeline="training", day="2022-05-05", root="var", source="simulated", seed="7", **more
    )


def script(tmp_path: Path, monkeypatch, body: str) -> None:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/bash\n{body}\n")
    monkeypatch.delenv("ONEREC_KFP_HOST", raising=False)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(ML_PYTHON, str(path))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_command_carries_every_field_and_leaves_out_empty_ones() -> None:
    base = ["-m", "kfp_components.run", "--pipeline", "training", "--day", "2022-05-05"]
    base += ["--root", "var", "--source", "simulated", "--seed", "7"]
    assert operator().arguments() == base
    assert operator(data="logs", fresh_from="align").arguments() == [*base, "--data", "logs", "--fresh-from", "align"]
    assert operator(refit="True").arguments() == [*base, "--refit"] and operator(refit="False").arguments() == base


def test_output_reaches_the_log_of_the_task_and_airflow_settings_stay_behind(tmp_path, monkeypatch, capfd) -> None:
    script(tmp_path, monkeypatch, 'echo "hello from $4"; echo "home=$AIRFLOW_HOME"; echo oops >&2')
    operator().execute({})
    said = capfd.readouterr().out
    for line in ("hello from training ", "home= ", "oops "):
        assert f"] {line}" in said


def test_a_failed_pipeline_fails_the_task_and_says_where_to_look(tmp_path, monkeypatch) -> None:
    script(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(
        AirflowException,
        match=r"training of 2022-05-05 ended with status 3.*var/runs/2022-05-05/logs.*next.*onerec daily",
    ):
        operator().execute({})


def test_a_missing_environment_is_named(monkeypatch) -> None:
    monkeypatch.setenv(ML_PYTHON, "/nowhere/python")
    with pytest.raises(AirflowException, match=r"/nowhere/python does not exist: run `make setup`"):
        operator().execute({})


@pytest.mark.parametrize("deaf", [False, True], ids=["polite", "deaf to SIGTERM"])
def test_killing_the_task_kills_the_whole_group(tmp_path, monkeypatch, deaf: bool) -> None:
    pids = tmp_path / "pids"
    trap = "trap '' TERM; " if deaf else ""
    script(tmp_path, monkeypatch, f"{trap}sleep 60 & echo $$ $! > {pids}.tmp; mv {pids}.tmp {pids}; wait; sleep 60")
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    task, errors = operator(), []

    def work() -> None:
        try:
            task.execute({})
        except AirflowException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 20
    while not pids.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    group = [int(pid) for pid in pids.read_text().split()]
    task.on_kill()
    thread.join(timeout=20)
    try:
        while any(map(alive, group)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(alive, group)) and not thread.is_alive()
        assert len(errors) == 1
    finally:
        for pid in filter(alive, group):
            os.kill(pid, signal.SIGKILL)
