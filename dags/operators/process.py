"""A command in the `ml` environment as a process group of its own: streamed to the log, ended with the task.

with Process(["-m", "cli.main", "release", "rollback"], log) as process: code = process.follow()
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from logging import Logger
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException

REPOSITORY = Path(__file__).resolve().parents[2]
ML_PYTHON = "ONEREC_ML_PYTHON"  # environment variable: the Python of the `ml` environment, if it is not .venv/ml
GRACE_S = 15.0


class Process:
    """Started by `run`, ended by `end`; the group ends with the task, however the task ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str], log: Logger | Any) -> int:
        """The exit status of the command, whose output went to the log line by line."""
        command = [python(), *arguments]
        log.info("running %s", " ".join(command))
        # Airflow's own settings would only confuse the other environment.
        env = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW") and k != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=env | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise AirflowException(f"{command[0]} does not exist: run `make setup`, or set {ML_PYTHON}") from None
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                log.info("%s", line.rstrip("\n"))
            return self._process.wait()
        finally:
            self.end()

    def end(self) -> None:
        """End the whole group: politely, then for good."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=GRACE_S)
            os.killpg(self._process.pid, signal.SIGKILL)


def python() -> str:
    return os.environ.get(ML_PYTHON) or str(REPOSITORY / ".venv" / "ml" / "bin" / "python")
