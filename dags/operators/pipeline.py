"""The operator that starts and follows one KFP pipeline of a day in the `ml` environment.

RunPipelineOperator(task_id="training", pipeline="training", day="{{ ds }}", root="var", source="simulated")
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

REPOSITORY = Path(__file__).resolve().parents[2]
ML_PYTHON = "ONEREC_ML_PYTHON"  # environment variable: the Python of the `ml` environment, if it is not .venv/ml
GRACE_S = 15.0


class RunPipelineOperator(BaseOperator):
    """Runs `python -m kfp_components.run` as a process group of its own and streams its output to the task's log.

    The group ends with the task, however the task ends. The task fails when the pipeline does; the line it fails with
    says where the step that failed left its log.
    """

    template_fields: Sequence[str] = ("day", "root", "source", "data", "seed", "fresh_from", "refit")

    def __init__(
        self,
        *,
        pipeline: str,
        day: str,
        root: str,
        source: str,
        data: str = "",
        seed: str | int = 0,
        fresh_from: str = "",
        refit: str | bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline, self.day, self.root, self.source = pipeline, day, root, source
        self.data, self.seed, self.fresh_from, self.refit = data, seed, fresh_from, refit
        self._process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        """What is run, from the rendered fields."""
        python = os.environ.get(ML_PYTHON) or str(REPOSITORY / ".venv" / "ml" / "bin" / "python")
        command = [python, "-m", "kfp_components.run", "--pipeline", self.pipeline, "--day", self.day]
        command += ["--root", self.root, "--source", self.source, "--seed", str(self.seed)]
        command += ["--data", self.data] if self.data else []
        command += ["--refit"] if str(self.refit).lower() == "true" else []
        return command + (["--fresh-from", self.fresh_from] if self.fresh_from else [])

    def execute(self, context) -> None:
        command = self.command()
        self.log.info("running %s", " ".join(command))
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
                self.log.info("%s", line.rstrip("\n"))
            code = self._process.wait()
        finally:
            self.on_kill()
        if code:
            logs = f"{self.root}/runs/{self.day}"
            raise AirflowException(
                f"pipeline {self.pipeline} of {self.day} ended with status {code}; the last failed event in"
                f" {logs}/progress.jsonl names the step, its log is {logs}/logs/<step>.log"
            )

    def on_kill(self) -> None:
        """End the whole group: politely, then for good."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=GRACE_S)
            os.killpg(self._process.pid, signal.SIGKILL)
