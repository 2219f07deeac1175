"""The operator that starts and follows one pipeline of a day: on Kubeflow Pipelines, or as a process on this machine.

RunPipelineOperator(task_id="training", pipeline="training", day="{{ ds }}", root="var", source="simulated")

ONEREC_KFP_HOST set: the compiled package is submitted once for a day and its code, and the task defers until the run
has ended. Not set: `python -m kfp_components.run` in the `ml` environment, the same pipeline by KFP's local runner.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from operators.kfp_api import DONE, LIVE, KfpApi, KfpRefused, KfpUnavailable
from operators.kfp_run import HOST, POLL_S, KfpRunTrigger, data_digest, ending, package, parameters, run_name
from operators.process import Process


class RunPipelineOperator(BaseOperator):
    """Fails when the pipeline does, with the step's log and the next command. Safe to run again at any time."""

    template_fields: Sequence[str] = (
        *("day", "root", "source", "data", "seed", "fresh_from", "refit", "wait_hours"),
        *("servers", "percents", "answers", "hours"),
    )

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
        wait_hours: str | float = 0,
        servers: str = "",
        percents: str = "",
        answers: str | int = 0,
        hours: str | float = 0,
        skip_without_servers: bool = False,
        poll_s: float = POLL_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline, self.day, self.root, self.source = pipeline, day, root, source
        self.data, self.seed, self.fresh_from, self.refit, self.poll_s = data, seed, fresh_from, refit, poll_s
        self.wait_hours, self.skip_without_servers = wait_hours, skip_without_servers
        self.servers, self.percents, self.answers, self.hours = servers, percents, answers, hours
        self._process, self._run_id = Process(), ""

    def execute(self, context) -> None:
        if self.skip_without_servers and not self.servers:
            raise AirflowSkipException(f"no servers (param `servers`, ONEREC_SERVERS): no traffic for {self.pipeline}")
        if host := os.environ.get(HOST):
            self._submit(host, context)
        elif code := self._process.run(self.arguments(), self.log):
            raise AirflowException(self.failure(f"ended with status {code}"))

    def arguments(self) -> list[str]:
        """What the local runner is called with, from the rendered fields."""
        found = ["-m", "kfp_components.run", "--pipeline", self.pipeline, "--day", self.day]
        found += ["--root", self.root, "--source", self.source, "--seed", str(self.seed)]
        found += ["--data", self.data] if self.data else []
        found += ["--wait-s", str(round(3600 * hours))] if (hours := float(self.wait_hours)) else []
        found += ["--refit"] if self._refit() else []
        for name, value in self._traffic().items():
            found += [f"--{name}", str(value)]
        return found + (["--fresh-from", self.fresh_from] if self.fresh_from else [])

    def _submit(self, host: str, context: Any) -> None:
        """Find or make the run, then let go of the worker until it has ended."""
        try:
            values = parameters(
                self.pipeline,
                day=self.day,
                root=self.root,
                source=self.source,
                data=self.data,
                data_digest=data_digest(self.data),
                seed=int(self.seed),
                fresh_from=self.fresh_from,
                refit=self._refit(),
                **self._traffic(),
            )
            again = context["run_id"] if self.fresh_from else ""
            name = run_name(self.pipeline, self.day, values, again)
            run = KfpApi(host).submit_once(name=name, package=package(self.pipeline), parameters=values)
        except (ValueError, OSError, KfpRefused, KfpUnavailable) as error:
            raise AirflowException(self.failure(f"was not submitted: {error}")) from None
        self._run_id = run["run_id"]
        self.log.info("run %s (%s) at %s", name, self._run_id, host)
        if run.get("state", "PENDING") not in LIVE:
            return self.finished(context, ending(run))
        self.defer(trigger=KfpRunTrigger(host, self._run_id, self.poll_s), method_name="finished")

    def finished(self, context: Any, event: dict[str, Any]) -> None:
        """After the run: a failed one fails the task; trying again makes another run, whose finished steps are kept."""
        if event["state"] != DONE:
            tasks = f", failed: {', '.join(event['tasks'])}" if event["tasks"] else ""
            raise AirflowException(
                self.failure(f"run {event['run_id']} ended as {event['state']}{tasks} {event['error']}".rstrip())
            )
        self.log.info("run %s succeeded", event["run_id"])

    def failure(self, what: str) -> str:
        """The line a failed task ends with: what, where to look, and the next command."""
        runs = f"{self.root}/runs/{self.day}"
        return (
            f"pipeline {self.pipeline} of {self.day} {what}; the last failed event in {runs}/progress.jsonl names the"
            f" step, its log is {runs}/logs/<step>.log; next, after mending it: clear this task, or onerec daily --date"
            f" {self.day} --root {self.root} --source {self.source}{f' --data {self.data}' if self.data else ''}"
        )

    def on_kill(self) -> None:
        """End what was started, here or on the cluster."""
        self._process.end()
        if self._run_id and (host := os.environ.get(HOST)):
            KfpApi(host, timeout_s=10.0).terminate(self._run_id)

    def _traffic(self) -> dict[str, Any]:
        """Of a rollout: who is watched, at which shares, how many requests, how long; only what was given."""
        found: dict[str, Any] = {}
        if self.servers or self.pipeline == "promote":
            found["servers"] = self.servers
        if self.percents:
            found |= {"percents": self.percents, "answers": int(self.answers), "hours": float(self.hours)}
        return found

    def _refit(self) -> bool:
        return str(self.refit).lower() == "true"
