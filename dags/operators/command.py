"""The operator that runs one `onerec` command: rollback, housekeeping. On a cluster as a KFP run, else as a process.

OnerecCommand(task_id="rollback", arguments=["release", "rollback", "--root", "{{ params.root }}"])
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from operators.kfp_api import DONE, LIVE, KfpApi, KfpRefused, KfpUnavailable
from operators.kfp_run import HOST, POLL_S, KfpRunTrigger, ending, package, run_name
from operators.process import Process


class OnerecCommand(BaseOperator):
    """Fails when the command does, with the very command to try by hand. Of one Airflow run it is run once: clearing
    a task that succeeded on the cluster does nothing again."""

    template_fields: Sequence[str] = ("arguments",)

    def __init__(self, *, arguments: list[str], poll_s: float = POLL_S, **kwargs) -> None:
        super().__init__(**kwargs)
        self.arguments, self.poll_s = arguments, poll_s
        self._process, self._run_id = Process(), ""

    def given(self) -> list[str]:
        """An argument that rendered to nothing is left out, so that optional ones need no branch here."""
        return [argument for argument in self.arguments if argument]

    def execute(self, context) -> None:
        if host := os.environ.get(HOST):
            self._submit(host, context)
        elif code := self._process.run(["-m", "cli.main", *self.given()], self.log):
            raise AirflowException(self.failure(f"ended with status {code}"))

    def _submit(self, host: str, context: Any) -> None:
        """The Airflow image holds no `onerec`: the image of the steps does."""
        values = {"arguments": self.given()}
        name = run_name("command", self.given()[0], values, context["run_id"])
        try:
            run = KfpApi(host).submit_once(name=name, package=package("command"), parameters=values)
        except (ValueError, OSError, KfpRefused, KfpUnavailable) as error:
            raise AirflowException(self.failure(f"was not submitted: {error}")) from None
        self._run_id = run["run_id"]
        self.log.info("run %s (%s) at %s", name, self._run_id, host)
        if run.get("state", "PENDING") not in LIVE:
            return self.finished(context, ending(run))
        self.defer(trigger=KfpRunTrigger(host, self._run_id, self.poll_s), method_name="finished")

    def finished(self, context: Any, event: dict[str, Any]) -> None:
        if event["state"] != DONE:
            raise AirflowException(self.failure(f"run {event['run_id']} ended as {event['state']} {event['error']}"))

    def failure(self, what: str) -> str:
        return f"{what.strip()}; next, by hand: onerec {shlex.join(self.given())}"

    def on_kill(self) -> None:
        self._process.end()
        if self._run_id and (host := os.environ.get(HOST)):
            KfpApi(host, timeout_s=10.0).terminate(self._run_id)
