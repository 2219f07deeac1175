"""The operator that runs one `onerec` command in the `ml` environment: rollback, housekeeping.

OnerecCommand(task_id="rollback", arguments=["release", "rollback", "--root", "{{ params.root }}"])
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from operators.process import Process


class OnerecCommand(BaseOperator):
    """Fails when the command does, with the very command to try by hand."""

    template_fields: Sequence[str] = ("arguments",)

    def __init__(self, *, arguments: list[str], **kwargs) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self._process = Process()

    def execute(self, context) -> None:
        # An argument that rendered to nothing is left out, so that optional ones need no branch here.
        given = [argument for argument in self.arguments if argument]
        if code := self._process.run(["-m", "cli.main", *given], self.log):
            raise AirflowException(f"ended with status {code}; next, by hand: onerec {shlex.join(given)}")

    def on_kill(self) -> None:
        self._process.end()
