"""Wait until a step of a day has left its outcome: a late upstream day is waited for, never skipped.

WaitForStep(task_id="wait_for_features", step="materialize", pipeline="features", **wait_fields())

The wait is for the data, not for a run of another DAG: whoever made the day (schedule, backfill, `onerec daily`, or a
run that Airflow's lost database no longer knows), it counts. Waiting costs no worker: the task defers to the triggerer.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from operators.process import REPOSITORY

OUTCOME = "_outcome.json"
POLL_S = 15.0


def outcome(root: str, source: str, day: str, step: str) -> Path:
    """Where the outcome of a step of a day lies (kfp_components/workspace.py). A relative root is the repository's."""
    return REPOSITORY / root / source / "days" / day / step / OUTCOME


class StepTrigger(BaseTrigger):
    """Fires when all the files exist."""

    def __init__(self, paths: list[str], poll_s: float = POLL_S) -> None:
        super().__init__()
        self.paths, self.poll_s = paths, poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.wait.StepTrigger", {"paths": self.paths, "poll_s": self.poll_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while missing(self.paths):
            await asyncio.sleep(self.poll_s)
        yield TriggerEvent(True)


class WaitForStep(BaseOperator):
    """Until `step` of the day is done; `yesterday`: and that one of the day before, if that day has features."""

    template_fields: Sequence[str] = ("day", "root", "source", "wait_hours")

    def __init__(
        self,
        *,
        step: str,
        day: str,
        root: str,
        source: str,
        wait_hours: str | float,
        yesterday: str = "",
        poll_s: float = POLL_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.step, self.day, self.root, self.source = step, day, root, source
        self.wait_hours, self.yesterday, self.poll_s = wait_hours, yesterday, poll_s

    def paths(self) -> list[str]:
        """The outcomes to wait for, from the rendered fields."""
        found = [outcome(self.root, self.source, self.day, self.step)]
        before = (dt.date.fromisoformat(self.day) - dt.timedelta(days=1)).isoformat()
        # A day that was ingested is a day to be trained: its successor must not start from older weights, or from none.
        if self.yesterday and outcome(self.root, self.source, before, "pathways").is_file():
            found.append(outcome(self.root, self.source, before, self.yesterday))
        return [str(path) for path in found]

    def execute(self, context) -> None:
        waiting, hours = missing(self.paths()), float(self.wait_hours)
        if not waiting or not hours:  # without waiting, the pipeline itself says what is missing
            return
        self.log.info("waiting for %s", ", ".join(waiting))
        self.defer(
            trigger=StepTrigger(self.paths(), self.poll_s), method_name="resumed", timeout=dt.timedelta(hours=hours)
        )

    def resumed(self, context, event: Any = None) -> None:
        if waiting := missing(self.paths()):
            raise AirflowException(f"{', '.join(waiting)} went away while it was waited for; clear this task")
        self.log.info("%s of %s is there", self.step, self.day)


def missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).is_file()]
