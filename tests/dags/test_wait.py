"""Waiting for a day that is late."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from operators.process import REPOSITORY
from operators.wait import StepTrigger, WaitForStep, outcome

DAY, BEFORE = "2022-05-05", "2022-05-04"


def wait(root: Path, **more) -> WaitForStep:
    fields = {"step": "tokenize", "day": DAY, "root": str(root), "source": "logs", "wait_hours": "20", "poll_s": 0.02}
    return WaitForStep(task_id="w", **(fields | more))


def make(root: Path, day: str, step: str) -> None:
    file = outcome(str(root), "logs", day, step)
    file.parent.mkdir(parents=True)
    file.touch()


def test_a_day_that_is_there_is_not_waited_for(tmp_path) -> None:
    make(tmp_path, DAY, "tokenize")
    assert wait(tmp_path).execute({}) is None  # to wait is to raise TaskDeferred


def test_a_late_day_is_waited_for_without_a_worker(tmp_path) -> None:
    with pytest.raises(TaskDeferred) as caught:
        wait(tmp_path).execute({})
    assert caught.value.timeout.total_seconds() == 20 * 3600
    kind, values = caught.value.trigger.serialize()
    assert kind == "operators.wait.StepTrigger"

    async def first() -> None:
        async for _ in StepTrigger(**values).run():
            return

    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(first(), 20)))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()  # still waiting, although time has passed
    make(tmp_path, DAY, "tokenize")
    thread.join(timeout=20)
    assert not thread.is_alive()
    wait(tmp_path).resumed({})


def test_days_train_in_order_if_the_day_before_was_ingested(tmp_path) -> None:
    ordered = wait(tmp_path, yesterday="publish")
    assert ordered.paths() == [str(outcome(str(tmp_path), "logs", DAY, "tokenize"))]  # a first day waits for nobody
    make(tmp_path, BEFORE, "pathways")
    assert ordered.paths()[1:] == [str(outcome(str(tmp_path), "logs", BEFORE, "publish"))]


def test_a_run_by_hand_does_not_wait(tmp_path) -> None:
    assert wait(tmp_path, wait_hours="0").execute({}) is None  # nothing is there, and it is not deferred


def test_data_that_goes_away_again_fails_the_task(tmp_path) -> None:
    with pytest.raises(AirflowException, match="went away"):
        wait(tmp_path).resumed({})


def test_outcomes_lie_where_the_workspace_says() -> None:
    """The DAGs may not import the room, so the two are held together by its source."""
    source = (REPOSITORY / "kfp_components" / "workspace.py").read_text()
    assert 'OUTCOME = "_outcome.json"' in source and 'self.base / "days" / check_day(day) / step' in source
    assert outcome("var", "s", DAY, "publish") == REPOSITORY / "var" / "s" / "days" / DAY / "publish" / "_outcome.json"
