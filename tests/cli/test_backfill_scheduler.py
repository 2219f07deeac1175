"""A backfill of three days through the real scheduler (LocalExecutor, SQLite): one poisoned, one killed in the middle.

The pipelines are tiny (tests/cli/tiny_pipeline.py); scheduler, DAGs, operator, steps, staging and swap are the real ones.
Takes a minute, most of it Airflow's own start, twice.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from cli import backfill
from cli.airflow_run import airflow
from cli.main import main
from kfp_components.digest import REPOSITORY
from kfp_components.workspace import Workspace

DAYS = ["2022-05-03", "2022-05-04", "2022-05-05"]
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module", autouse=True)
def orchestrate() -> None:
    try:
        airflow()
    except ValueError as error:
        pytest.skip(str(error))


def texts(w: Workspace) -> dict[str, str]:
    """What the lake holds: day -> the text of its rows, which must all be there once."""
    found = {}
    for file in sorted(w.lake.glob("impressions/dt=*/part-0.parquet")):
        table = pq.read_table(file)
        assert table["user_id"].to_pylist() == [1, 2, 3]
        (found[file.parent.name[3:]],) = set(table["text"].to_pylist())
    return found


def test_three_days_one_poisoned_one_killed(tmp_path, monkeypatch, capsys) -> None:
    data, root = tmp_path / "logs", tmp_path / "var"
    data.mkdir()
    python = tmp_path / "python"
    tiny = Path(__file__).with_name("tiny_pipeline.py")
    python.write_text(f'#!/bin/bash\nPYTHONPATH={REPOSITORY} exec {sys.executable} {tiny} "${{@:3}}"\n')
    python.chmod(0o755)
    monkeypatch.setenv("ONEREC_ML_PYTHON", str(python))
    filled: list[str] = []
    monkeypatch.setattr(backfill, "fill_online", lambda live, days: filled.extend(days))
    w = Workspace(root=str(root), source="logs")
    args = ["backfill", "--data", str(data), "--root", str(root), "--from", DAYS[0], "--to", DAYS[2]]
    args += ["--only", "features"]

    # Day 1 is slow and is killed with everything around it, by SIGKILL, in the middle of its write.
    for day, text in zip(DAYS, ["slow", "poison", "good"]):
        (data / f"{day}.txt").write_text(text)
    log = open(tmp_path / "first.log", "wb")
    first = subprocess.Popen([sys.executable, "-m", "cli.main", *args], cwd=REPOSITORY, stdout=log, stderr=log)
    deadline = time.monotonic() + 240
    while not (data / f"{DAYS[0]}.writing").exists():
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "first.log").read_text()
        time.sleep(0.1)
    tree = psutil.Process(first.pid).children(recursive=True)
    for process in [psutil.Process(first.pid), *tree]:
        process.send_signal(signal.SIGKILL)
    first.wait()
    psutil.wait_procs(tree, timeout=20)
    assert texts(w) == {} and not w.base.joinpath("days").exists()  # nothing live was touched, nothing half is seen

    # Again: day 1 runs, day 2 is poisoned and stops day 3.
    (data / f"{DAYS[0]}.txt").write_text("mended")
    assert main(args) == 1
    error = capsys.readouterr().err
    assert f"FAILED day {DAYS[1]} at step validate" in error and "holds poison" in error and "again" in error
    staging = Workspace(root=str(root / ".backfill" / f"{DAYS[0]}_{DAYS[2]}_features"), source="logs")
    assert staging.days_with("materialize") == [DAYS[0]] and DAYS[2] not in staging.days_with("validate")
    assert texts(w) == {}
    kept = staging.outcome(DAYS[0], "materialize").stat().st_mtime_ns

    # Mended: it goes on at day 2, and all is swapped in.
    (data / f"{DAYS[1]}.txt").write_text("whole")
    monkeypatch.setattr(sys, "argv", ["onerec", *args])
    assert main(args) == 0
    assert texts(w) == dict(zip(DAYS, ["mended", "whole", "good"])) and filled == DAYS
    assert w.days_with("materialize") == DAYS and not (root / ".backfill").joinpath(staging.base.parent.name).exists()
    assert w.outcome(DAYS[0], "materialize").stat().st_mtime_ns == kept  # day 1 was not made twice
    assert "nothing to do" in (main(args), capsys.readouterr().out)[1]
