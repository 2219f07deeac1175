"""A backfill of everything (features, tokenizer, retraining, release) with the real scheduler, DAGs, pipelines and steps.

ONEREC_FULL_BACKFILL=1 runs it: three days of a small simulated service, one killed, one poisoned; about ten minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from fault import cases, fault

from kfp_components.digest import REPOSITORY
from kfp_components.step import Outcome
from kfp_components.workspace import Workspace
from releases.channels import read_channel
from releases.manifest import load_release
from releases.object_store import DirectoryStore

FIRST, DAYS = "2026-01-03", ["2026-01-04", "2026-01-05", "2026-01-06"]
pytestmark = pytest.mark.timeout(3600)


def not_asked_for() -> str:
    return "" if os.environ.get("ONEREC_FULL_BACKFILL") == "1" else "ten minutes: set ONEREC_FULL_BACKFILL=1"


def onerec(root: Path, *words: str) -> subprocess.CompletedProcess:
    env = os.environ | {"ONEREC_ROOT": str(root), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "cli.main", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=env)


@fault(area="airflow", needs=not_asked_for,
       injection="full backfill of three days: the second day's log lost a column; then SIGKILL of everything in the first day's pre-training",
       expected="live data untouched until all are good; resumed twice; each day made once, trained in order, swapped in")  # fmt: skip
def full_backfill_killed_and_poisoned(tmp_path: Path) -> str:
    root = tmp_path / "var"
    live = Workspace(root=str(root), source="simulated")
    staging = Workspace(root=str(root / ".backfill" / f"{DAYS[0]}_{DAYS[-1]}_all"), source="simulated")
    logs = live.base / "logs"
    size = ["--days", "6", "--end", "2026-01-07", "--users", "120", "--items", "100", "--impressions", "4000"]
    assert onerec(root, "simulate", str(logs), *size).returncode == 0
    done = onerec(root, "daily", "--date", FIRST)
    assert done.returncode == 0, done.stdout + done.stderr
    before = read_channel(DirectoryStore(live.store), "production")
    taken: list[float] = []
    args = ["backfill", "--from", DAYS[0], "--to", DAYS[-1]]

    def untouched() -> None:
        assert live.days_with("ingest") == [FIRST]
        assert read_channel(DirectoryStore(live.store), "production") == before

    file = next((logs / "impressions" / f"dt={DAYS[1]}").glob("*.parquet"))
    whole = file.read_bytes()
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["item_id"]), file)
    started = time.monotonic()
    stopped = onerec(root, *args)
    taken.append(time.monotonic() - started)
    assert stopped.returncode == 1 and f"FAILED day {DAYS[0]} at step ingest" in stopped.stderr, stopped.stderr
    assert "item_id" in stopped.stderr and "again  " in stopped.stderr
    assert staging.days_with("ingest") == [FIRST]  # the day before is evaluated on the poisoned one, so it stops first
    untouched()
    file.write_bytes(whole)

    started = time.monotonic()
    kill_in_pretraining(root, args, staging.progress(DAYS[0]), tmp_path / "killed.log")
    taken.append(time.monotonic() - started)
    assert not staging.outcome(DAYS[0], "pretrain").exists()
    untouched()

    made = {d: staging.outcome(d, "ingest").stat().st_mtime_ns for d in staging.days_with("ingest")}
    started = time.monotonic()
    done = onerec(root, *args)
    taken.append(time.monotonic() - started)
    assert done.returncode == 0, done.stdout + done.stderr
    assert live.days_with("promote") == [FIRST, *DAYS] and not staging.base.exists()
    for day, at in made.items():
        assert live.outcome(day, "ingest").stat().st_mtime_ns == at, f"{day} was made twice"
    store, ids = DirectoryStore(live.store), {}
    for day in [FIRST, *DAYS]:
        ids[day] = Outcome.read(live.step_dir(day, "publish")).metrics["release_id"]
    for day, earlier in zip(DAYS, [FIRST, *DAYS]):
        assert load_release(store, ids[day])[1].parents == [ids[earlier]], "days did not train in order"
    candidate = read_channel(store, "candidate")
    assert candidate is not None and candidate.release_id == ids[DAYS[-1]]
    again = onerec(root, *args)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    seconds = ", ".join(f"{t:.0f} s" for t in taken)
    return f"3 days, trained in order, swapped in; stopped, killed, whole after {seconds}"


def kill_in_pretraining(root: Path, args: list[str], progress: Path, log: Path) -> None:
    """Start the backfill; end it and everything below it by SIGKILL while the first day pre-trains."""
    env = os.environ | {"ONEREC_ROOT": str(root), "PYTHONPATH": str(REPOSITORY)}
    with open(log, "wb") as output:
        command = [sys.executable, "-m", "cli.main", *args]
        first = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output, env=env)
    end = time.monotonic() + 1500
    while not pretraining(progress):
        assert first.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    tree = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in tree:
        process.send_signal(signal.SIGKILL)
    first.wait()
    psutil.wait_procs(tree, timeout=20)


def pretraining(progress: Path) -> bool:
    events = [json.loads(line) for line in progress.read_text().splitlines()] if progress.is_file() else []
    return any(e["step"] == "pretrain" and e["event"] == "started" for e in events)


test_fault = cases(__name__)
