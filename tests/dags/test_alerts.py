"""Alerts are logged and reach a webhook; one that is down fails nothing."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import alerts


def test_an_alert_reaches_log_and_webhook_with_the_next_step(monkeypatch, caplog) -> None:
    taken: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    monkeypatch.setenv("ONEREC_ALERT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    with caplog.at_level(logging.ERROR):
        alerts.deadline_missed(hours=30.0, context={"dag_run": {"dag_id": "onerec_features", "run_id": "r1"}})
    thread.join(timeout=10)
    server.server_close()
    alerts.deadline_missed(hours=30.0, context={"dag_run": {"dag_id": "d", "run_id": "backfill__2022-05-06"}})
    assert taken[0]["alert"] == "deadline_missed" and taken[0]["dag_id"] == "onerec_features"
    assert (
        "30 h after" in taken[0]["text"]
        and "next:" in taken[0]["text"]
        and caplog.text.count("ALERT deadline_missed") == 1
    )


def test_a_failed_task_is_an_alert_and_a_dead_webhook_fails_nothing(monkeypatch, caplog) -> None:
    monkeypatch.setenv("ONEREC_ALERT_URL", "http://127.0.0.1:1")
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r")
    with caplog.at_level(logging.ERROR):
        alerts.task_failed({"ti": ti, "exception": ValueError("no space; next: x")})
        alerts.task_failed({"ti": ti, "exception": TimeoutError("Trigger timed out")})
    assert "d.t r failed: no space; next: x\n" in caplog.text and "did not take the alert" in caplog.text
    assert "Trigger timed out; next: its log in Airflow says why; mend that, then clear this task" in caplog.text
