"""Faults of what the day is scheduled with: Kubeflow Pipelines, Airflow, PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from fault import cases, fault, no_airflow

from cli import backfill
from cli.airflow_run import prepare
from cli.local import pid_file
from cli.main import main
from cli.scheduler import scheduler
from kfp_components.compile import PACKAGES
from kfp_components.digest import REPOSITORY
from kfp_components.workspace import Workspace

# The client of KFP is plain Python of the DAGs' room; the fake server is shared with its tests.
sys.path[:0] = [str(REPOSITORY / "dags"), str(REPOSITORY / "tests" / "dags")]
from fake_kfp import FakeKfp  # noqa: E402
from operators.kfp_api import KfpApi, KfpUnavailable  # noqa: E402

PACKAGE, DAYS = PACKAGES / "tokenizer.yaml", ["2022-05-03", "2022-05-04", "2022-05-05"]


def submit(kfp: FakeKfp, **more) -> str:
    fields = {"name": "onerec-tokenizer-2022-05-05-1", "package": PACKAGE, "parameters": {}, "poll_s": 0.01}
    return KfpApi(kfp.url, timeout_s=5).submit_once(**(fields | more))["run_id"]


@fault(area="kfp", injection="503, closed connections, half answers and HTML while a run is submitted",
       expected="one run, submitted when the API answers again")  # fmt: skip
def api_flapping(tmp_path: Path) -> str:
    with FakeKfp() as kfp:
        kfp.faults += ["503", "drop", "half", "garbage", "ok", "503", "ok", "drop"]
        submit(kfp)
        assert len(kfp.runs) == 1
        return f"1 run after {len(kfp.calls)} calls"


@fault(area="kfp", injection="the run is created but the answer is lost on its way",
       expected="the next try finds it instead of making another")  # fmt: skip
def lost_answer(tmp_path: Path) -> str:
    with FakeKfp() as kfp:
        kfp.faults += ["ok", "created-then-drop"]
        submit(kfp)
        return f"{len(kfp.runs)} run" if len(kfp.runs) == 1 else pytest.fail(f"{len(kfp.runs)} runs")


@fault(area="kfp", injection="two schedulers submit the same day at the same moment, both past the look-up",
       expected="one run lives; the younger is ended by whoever made it, and both follow the older")  # fmt: skip
def two_triggers_of_one_day(tmp_path: Path) -> str:
    with FakeKfp() as kfp:
        kfp.barrier = threading.Barrier(2)
        kept: list[str] = []
        threads = [threading.Thread(target=lambda: kept.append(submit(kfp))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(kfp.live()) == 1 and set(kept) == set(kfp.live()) and len(kept) == 2
        return "2 made, 1 lives, both follow it"


@fault(area="kfp", injection="the API server is down for longer than the patience",
       expected="the task fails and names the address; nothing was submitted twice afterwards")  # fmt: skip
def api_down(tmp_path: Path) -> str:
    with FakeKfp() as kfp:
        kfp.stop()
        with pytest.raises(KfpUnavailable, match=f"no answer from {kfp.url}"):
            submit(kfp, patience_s=0.3)
        kfp.restart()
        assert submit(kfp) == submit(kfp) and len(kfp.runs) == 1
        return "failed by name; 1 run when it was back"


@fault(area="kfp", injection="the bearer token has expired (401) and is rotated a moment later",
       expected="the file is read anew for every call: the submission goes through")  # fmt: skip
def expired_token(tmp_path: Path) -> str:
    token = tmp_path / "token"
    token.write_text("old")
    with FakeKfp() as kfp, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEREC_KFP_TOKEN_FILE", str(token))
        kfp.token = "new"
        threading.Timer(0.3, lambda: token.write_text("new")).start()
        submit(kfp)
        refused = kfp.refused
        assert refused and len(kfp.runs) == 1
        return f"{refused} refusals, then 1 run"


@fault(area="airflow", needs=no_airflow,
       injection="backfill of three days: SIGKILL of scheduler, worker and command in the first day's write; the second poisoned",
       expected="live data untouched until all three are good; resumed twice; each day made once, swapped in")  # fmt: skip
def scheduler_killed_and_a_day_poisoned(tmp_path: Path) -> str:
    """The real scheduler (LocalExecutor, SQLite), DAGs, operator, steps, staging and swap; only the pipelines are tiny."""
    data, root = tmp_path / "logs", tmp_path / "var"
    data.mkdir()
    python, tiny = tmp_path / "python", Path(__file__).with_name("tiny_pipeline.py")
    python.write_text(f'#!/bin/bash\nPYTHONPATH={REPOSITORY} exec {sys.executable} {tiny} "${{@:3}}"\n')
    python.chmod(0o755)
    w = Workspace(root=str(root), source="logs")
    args = ["backfill", "--data", str(data), "--root", str(root), "--from", DAYS[0], "--to", DAYS[2]]
    args += ["--only", "features"]
    staging = Workspace(root=str(root / ".backfill" / f"{DAYS[0]}_{DAYS[2]}_features"), source="logs")
    filled: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEREC_ML_PYTHON", str(python))
        patch.setattr(backfill, "fill_online", lambda live, days: filled.extend(days))
        for day, text in zip(DAYS, ["slow", "poison", "good"]):
            (data / f"{day}.txt").write_text(text)
        kill_in_the_first_day(args, data / f"{DAYS[0]}.writing", tmp_path / "first.log")
        assert texts(w) == {} and not (w.base / "days").exists()

        with scheduler_of_the_root(root, tmp_path / "again.log"):  # one for both resumptions: a start takes a while
            (data / f"{DAYS[0]}.txt").write_text("mended")
            assert main(args) == 1  # day 1 runs, day 2 is poisoned and stops day 3
            assert staging.days_with("materialize") == [DAYS[0]] and DAYS[2] not in staging.days_with("validate")
            assert "holds poison" in staging.progress(DAYS[1]).read_text() and texts(w) == {}
            made = staging.outcome(DAYS[0], "materialize").stat().st_mtime_ns

            (data / f"{DAYS[1]}.txt").write_text("whole")
            assert main(args) == 0
        assert texts(w) == dict(zip(DAYS, ["mended", "whole", "good"])) and filled == DAYS
        assert w.days_with("materialize") == DAYS and not staging.base.exists()
        assert w.outcome(DAYS[0], "materialize").stat().st_mtime_ns == made  # not made twice
        assert main(args) == 0 and filled == DAYS  # nothing to do any more
    return "3 days swapped in after 2 resumptions"


@contextlib.contextmanager
def scheduler_of_the_root(root: Path, log: Path):
    """A real Airflow on the database that the killed one left, announced as `make up` announces its own."""
    with scheduler(prepare(root), log, until=DAYS[-1]) as ours:
        assert ours.process is not None
        born, announced = psutil.Process(ours.process.pid).create_time(), pid_file(root, "airflow")
        announced.parent.mkdir(parents=True, exist_ok=True)
        announced.write_text(json.dumps({"pid": ours.process.pid, "born": born, "url": ours.url}))
        yield
        assert ours.process.poll() is None  # the commands left it running
    announced.unlink()


def kill_in_the_first_day(args: list[str], flag: Path, log: Path) -> None:
    """Start the command, and end it and everything below it by SIGKILL when the flag appears."""
    with open(log, "wb") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *args], cwd=REPOSITORY, stdout=output, stderr=output
        )
    end = time.monotonic() + 240
    while not flag.exists():
        assert first.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    tree = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in tree:
        process.send_signal(signal.SIGKILL)
    first.wait()
    psutil.wait_procs(tree, timeout=20)


def texts(w: Workspace) -> dict[str, str]:
    """What the lake holds: day -> the text of its rows, which must all be there once."""
    found = {}
    for file in sorted(w.lake.glob("impressions/dt=*/part-0.parquet")):
        table = pq.read_table(file, partitioning=None)
        assert table["user_id"].to_pylist() == [1, 2, 3]
        (found[file.parent.name[3:]],) = set(table["text"].to_pylist())
    return found


def no_postgres() -> str:
    from tests.feature_repo.servers import _postgres_binaries

    return "" if _postgres_binaries() else "no PostgreSQL server: install the package postgresql"


@fault(area="features", needs=no_postgres, injection="PostgreSQL, which holds Feast's registry, is stopped and started again",
       expected="a process that had it open reads the same registry without a restart of its own")  # fmt: skip
def postgres_restart(tmp_path: Path) -> str:
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from tests.feature_repo.servers import postgres_server

    with postgres_server() as url:
        config = RepoConfig(
            project="p",
            provider="local",
            registry={"registry_type": "sql", "path": url, "cache_ttl_seconds": 0},
            online_store={"type": "sqlite", "path": str(tmp_path / "o.db")},
            offline_store={"type": "duckdb"},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply([])
        before = [p.name for p in store.registry.list_projects()]
        port = url.rsplit(":", 1)[1].split("/")[0]
        mine = psutil.Process().children(recursive=True)
        server = next(p for p in mine if "-p" in (line := p.cmdline()) and port in line)
        command, user = server.cmdline(), server.username()
        server.send_signal(signal.SIGINT)
        psutil.wait_procs([server], timeout=30)
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user == "postgres" else []
        again = subprocess.Popen([*as_user, *command], cwd="/", stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 30
            while True:
                try:
                    after = [p.name for p in store.registry.list_projects()]
                    break
                except Exception:
                    assert time.monotonic() < end
                    time.sleep(0.2)
            assert after == before == ["p"]
        finally:
            again.send_signal(signal.SIGINT)
            again.wait(30)
    return "same registry after the restart"


test_fault = cases(__name__)
