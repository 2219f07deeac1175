"""What is said when a deadline passes or a task fails: one line with the next command, and the same to a webhook.

ONEREC_ALERT_URL: where alerts are POSTed as JSON ({"alert", "dag_id", "run_id", "text"}); without it they are logged.
"""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from typing import Any

log = logging.getLogger("onerec.alerts")
TIMEOUT_S = 10.0


def deadline_missed(hours: float = 0.0, context: dict[str, Any] | None = None, **_: Any) -> None:
    """Callback of a DeadlineAlert: the run is late, not failed."""
    run = (context or {}).get("dag_run") or {}
    dag_id, run_id = _field(run, "dag_id"), _field(run, "run_id")
    if run_id.startswith("backfill__"):  # old days are late by nature; `onerec backfill` follows them itself
        log.info("%s %s is of an old day: no deadline", dag_id, run_id)
        return
    text = (
        f"{dag_id} {run_id} is not done {hours:g} h after its day began; next: open its page in Airflow and see which"
        " task it waits in (docs/runbooks/failed_day.md); nothing is lost, production keeps its release"
    )
    send("deadline_missed", dag_id, run_id, text)


def task_failed(context: dict[str, Any]) -> None:
    """on_failure_callback of every task: after the last try. What our operators raise says the next command itself; a
    time-out and whatever else Airflow raises do not."""
    ti = context["ti"]
    text = f"{ti.dag_id}.{ti.task_id} {ti.run_id} failed: {context.get('exception')}"
    if "; next" not in text:
        text += "; next: its log in Airflow says why; mend that, then clear this task (docs/runbooks/failed_day.md)"
    send("task_failed", ti.dag_id, ti.run_id, text)


def send(alert: str, dag_id: str, run_id: str, text: str) -> None:
    """Log the alert, and POST it where a webhook is set. A webhook that is down is logged and fails nothing."""
    log.error("ALERT %s: %s", alert, text)
    if not (url := os.environ.get("ONEREC_ALERT_URL")):
        return
    body = json.dumps({"alert": alert, "dag_id": dag_id, "run_id": run_id, "text": text}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except OSError as error:
        log.error("the webhook %s did not take the alert: %s", url, error)


def _field(run: Any, name: str) -> str:
    found = run.get(name) if isinstance(run, dict) else getattr(run, name, None)
    return str(found or "?")
