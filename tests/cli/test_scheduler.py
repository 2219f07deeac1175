"""Following a backfill in Airflow: a scheduler that died under a living API is told, not waited for."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cli.scheduler import SILENT_S, Airflow

DAYS = ["2022-05-03", "2022-05-04"]


@pytest.fixture
def api() -> Iterator[dict[str, Any]]:
    """Airflow's REST API as far as it is asked: `beat` is the age of the heartbeat, `state` that of every run."""
    says: dict[str, Any] = {"beat": 1.0, "state": "running", "calls": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/api/v2").partition("?")[0]
            says["calls"].append(f"{self.command} {path}")
            beat = None if says["beat"] is None else dt.datetime.now(dt.UTC) - dt.timedelta(seconds=says["beat"])
            found = {
                "/monitor/health": {"scheduler": {"latest_scheduler_heartbeat": beat and beat.isoformat()}},
                "/dags/d": {"is_paused": False},
                "/dags/d/dagRuns": {
                    "dag_runs": [
                        {"logical_date": f"{day}T00:00:00Z", "dag_run_id": day, "state": says["state"]} for day in DAYS
                    ]
                },
            }.get(path, {"backfills": [], "id": 1})
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield says | {"url": f"http://127.0.0.1:{server.server_address[1]}", "set": says.update}
        server.shutdown()


@pytest.mark.parametrize("beat", [SILENT_S + 1, None])
def test_a_silent_scheduler_ends_the_waiting_with_the_next_command(api, beat) -> None:
    api["set"](beat=beat)
    with pytest.raises(ValueError, match=r"scheduler ended or hangs: .* make down, make up, then run the same command"):
        Airflow(api["url"]).backfill({"d": DAYS}, {}, lambda _: None)


def test_runs_that_succeed_end_it_well_and_one_that_fails_names_its_day_and_cancels(api) -> None:
    api["set"](state="success")
    said: list[str] = []
    assert Airflow(api["url"]).backfill({"d": DAYS}, {}, said.append) == ""
    assert said == [f"d {day}: success" for day in DAYS]
    api["set"](state="failed")
    assert Airflow(api["url"]).backfill({"d": DAYS}, {}, said.append) == DAYS[0]
    assert "PUT /backfills/1/cancel" in api["calls"]
