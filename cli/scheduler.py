"""A real Airflow (scheduler, triggerer, API) for as long as a backfill needs it, and its REST API.

with scheduler(home, log, until="2022-05-05") as airflow:
    failed = airflow.backfill({"onerec_features": ["2022-05-03", "2022-05-04"]}, conf, print)

Where `make up` runs an Airflow in this root, that one is used and left running.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

from cli.airflow_run import airflow, import_pools, start
from cli.local import running
from serving.ports import free_ports

READY_S, POLL_S, TRIES = 240.0, 1.5, 20
SILENT_S = 180.0  # without a heartbeat a scheduler has ended or hangs; it beats every 5 s, a busy machine delays that
ENDED = ("success", "failed")


class Airflow:
    """The REST API of a running Airflow. `process`: ours, or None when somebody else's is used."""

    def __init__(self, url: str, process: Popen | None = None) -> None:
        self.url, self.process = url, process

    def call(self, method: str, path: str, body: dict | None = None) -> dict[str, Any]:
        """A call; ValueError with Airflow's own words when it refuses."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/api/v2{path}", data=data, headers={"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode(errors="replace")
            raise ValueError(f"Airflow refused {method} {path}: {error.code} {text}") from None

    def wait(self, dags: list[str], log: Path) -> None:
        """Until scheduler and triggerer are healthy and the DAGs are known."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and (self.process is None or self.process.poll() is None):
            with contextlib.suppress(OSError, ValueError):
                health = self.call("GET", "/monitor/health")
                if all(health[part]["status"] == "healthy" for part in ("scheduler", "triggerer", "dag_processor")):
                    for dag in dags:
                        self.call("GET", f"/dags/{dag}")
                    return
            time.sleep(0.5)
        raise ValueError(f"Airflow did not come up; see {log}")

    def check_heartbeat(self) -> None:
        """ValueError when the scheduler is silent: `airflow standalone` goes on without one, and nothing would move."""
        beat = self.call("GET", "/monitor/health")["scheduler"]["latest_scheduler_heartbeat"]
        silent = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(beat)).total_seconds() if beat else SILENT_S
        if silent >= SILENT_S:
            first = "run" if self.process else "make down, make up, then run"
            raise ValueError(
                f"Airflow's scheduler ended or hangs: no heartbeat for {silent:.0f} s (its log says why);"
                f" {first} the same command again, it goes on where it stopped"
            )

    def runs(self, dag: str, days: list[str]) -> dict[str, tuple[str, str]]:
        """Day -> (run id, state) of the runs of these days."""
        query = {"logical_date_gte": f"{days[0]}T00:00:00Z", "logical_date_lte": f"{days[-1]}T00:00:00Z", "limit": 400}
        found = self.call("GET", f"/dags/{dag}/dagRuns?{urllib.parse.urlencode(query)}")["dag_runs"]
        return {run["logical_date"][:10]: (run["dag_run_id"], run["state"]) for run in found}

    def clear_the_way(self, dag: str, days: list[str]) -> None:
        """End what a killed backfill left: the caller holds the lock, so nobody follows these runs any more."""
        for old in self.call("GET", f"/backfills?dag_id={dag}")["backfills"]:
            if not old["completed_at"]:
                self.call("PUT", f"/backfills/{old['id']}/cancel")
        for run_id, state in self.runs(dag, days).values():
            if state not in ENDED:
                path = f"/dags/{dag}/dagRuns/{urllib.parse.quote(run_id, safe='')}"
                self.call("PATCH", path, {"state": "failed"})

    def backfill(self, dags: dict[str, list[str]], conf: dict[str, Any], progress: Callable[[str], None]) -> str:
        """Airflow's own backfill of the DAGs, each over its days, one run of each at a time, oldest first.

        Returns the first day of which a run failed, or "" when all succeeded. A failure cancels what has not begun.
        """
        made: dict[str, int] = {}
        paused = [dag for dag in dags if self.call("GET", f"/dags/{dag}")["is_paused"]]
        try:
            for dag, days in dags.items():
                self.clear_the_way(dag, days)
                body = {
                    "dag_id": dag,
                    "from_date": f"{days[0]}T00:00:00Z",
                    "to_date": f"{days[-1]}T00:00:00Z",
                    "dag_run_conf": conf,
                    "reprocess_behavior": "completed",
                    "max_active_runs": 1,
                }
                made[dag] = self._create(dag, days, body)
            for dag in paused:
                self.call("PATCH", f"/dags/{dag}", {"is_paused": False})
            return self._follow(dags, made, progress)
        finally:
            with contextlib.suppress(OSError, ValueError):
                for dag in paused:
                    self.call("PATCH", f"/dags/{dag}", {"is_paused": True})

    def _create(self, dag: str, days: list[str], body: dict[str, Any]) -> int:
        """A new backfill. SQLite refuses while another part of Airflow writes: then again, from anew."""
        for left in range(TRIES, -1, -1):
            try:
                return self.call("POST", "/backfills", body)["id"]
            except ValueError as error:
                if not left or "locked" not in str(error):
                    raise
                time.sleep(2 * POLL_S)
                self.clear_the_way(dag, days)
        raise AssertionError("the last try returns or raises")

    def _follow(self, dags: dict[str, list[str]], made: dict[str, int], progress: Callable[[str], None]) -> str:
        told: dict[tuple[str, str], str] = {}
        while True:
            if self.process is not None and self.process.poll() is not None:
                raise ValueError("Airflow ended in the middle; run the same command again")
            self.check_heartbeat()
            states = {dag: self.runs(dag, days) for dag, days in dags.items()}
            for dag, days in dags.items():
                for day in days:
                    state = states[dag].get(day, ("", "missing"))[1]
                    if told.get((dag, day)) != state and state in (*ENDED, "running"):
                        told[dag, day] = state
                        progress(f"{dag} {day}: {state}")
            failed = sorted(day for (_, day), state in told.items() if state == "failed")
            if failed:
                for number in made.values():
                    with contextlib.suppress(ValueError):  # completed meanwhile
                        self.call("PUT", f"/backfills/{number}/cancel")
                return failed[0]
            if all(told.get((dag, day)) == "success" for dag, days in dags.items() for day in days):
                return ""
            time.sleep(POLL_S)


@contextlib.contextmanager
def scheduler(home: Path, log: Path, *, until: str) -> Iterator[Airflow]:
    """An Airflow for the block. `until`: the last day that it may schedule by itself: none but the backfill's."""
    dags = [f"onerec_{name}" for name in ("features", "tokenizer", "training", "release")]
    if (found := running(home.parent, "airflow")) is not None:
        airflow_up = Airflow(found["url"])
        airflow_up.wait(dags, log)
        yield airflow_up
        return
    import_pools(home)
    print("airflow       starting a scheduler for the backfill", flush=True)
    (port,) = free_ports(1)
    env = {
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "ONEREC_SCHEDULE_UNTIL": until,
    }
    with start(home, [str(airflow()), "standalone"], log, env) as process:
        ours = Airflow(f"http://127.0.0.1:{port}", process)
        ours.wait(dags, log)
        yield ours
