"""The whole day for real, on a small simulated log: Airflow, KFP, Great Expectations, Feast, PyTorch, Triton over gRPC.

.venv/ml/bin/python -m pytest tests/test_day_e2e.py
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kfp_components.digest import REPOSITORY
from kfp_components.step import Outcome
from kfp_components.workspace import PIPELINES, STEPS, Workspace, day_before
from releases.channels import read_channel
from releases.gates import read_decision
from releases.manifest import load_release
from releases.object_store import DirectoryStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
DAY, LAST = "2026-01-04", "2026-01-05"


def onerec(*arguments: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `logs`: four days of a small simulated service."""
    folder = tmp_path_factory.mktemp("day")
    size = ["--days", "4", "--end", LAST, "--users", "120", "--items", "100", "--impressions", "4000"]
    done = onerec("simulate", str(folder / "logs"), *size)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def first(place) -> subprocess.CompletedProcess:
    """The first day: no --date, so it is the last but one of the logs, and it bootstraps."""
    return onerec("daily", "--data", str(place / "logs"), "--root", str(place / "var"))


@pytest.fixture(scope="module")
def workspace(place, first) -> Workspace:
    assert first.returncode == 0, first.stdout + first.stderr
    return Workspace(root=str(place / "var"), source="logs")


@pytest.fixture(scope="module")
def outcomes(workspace) -> dict[str, Outcome]:
    return {step: Outcome.read(workspace.step_dir(DAY, step)) for step in STEPS}


@pytest.fixture(scope="module")
def release(workspace, outcomes) -> tuple[Path, object]:
    return load_release(DirectoryStore(workspace.store), outcomes["publish"].metrics["release_id"])


def test_every_step_ran_and_said_so_in_one_line(first, workspace) -> None:
    done = [line.split()[0] for line in first.stdout.splitlines() if "done," in line and "MiB at most" in line]
    # Pre-training and the reward model do not wait for each other, so KFP may run either first.
    assert sorted(done) == sorted(STEPS) and done[0] == "ingest" and done[-1] == "report"


def test_airflow_ran_the_four_pipelines_as_its_own_tasks(place, workspace) -> None:
    with sqlite3.connect(place / "var" / "airflow" / "airflow.db") as db:
        rows = db.execute("SELECT task_id, state FROM task_instance WHERE dag_id = 'onerec_daily'").fetchall()
        runs = db.execute("SELECT logical_date, state FROM dag_run WHERE dag_id = 'onerec_daily'").fetchall()
    assert dict(rows) == dict.fromkeys(PIPELINES, "success")
    assert [(date[:10], state) for date, state in runs] == [(DAY, "success")]


def test_each_step_consumed_what_the_one_before_it_left(outcomes) -> None:
    for name, outcome in outcomes.items():
        for key, digest in outcome.inputs.items():
            day, step = key.split("/")
            assert day == DAY and STEPS.index(step) < STEPS.index(name) and outcomes[step].digest == digest
    assert not [name for name, o in outcomes.items() if not o.inputs and name != "ingest"]


def test_great_expectations_judged_the_tables(workspace, outcomes) -> None:
    quality = outcomes["validate"].metrics
    assert quality["critical_failed"] == 0 and len(quality["results"]) > 20
    page = workspace.run_dir(DAY) / "data_quality" / "docs" / "index.html"
    assert "great_expectations" in page.read_text(errors="replace").lower().replace(" ", "_")


def test_feast_has_the_views_and_serves_them_online(workspace, outcomes) -> None:
    from feature_repo.online import OnlineFeatures

    seen = pq.read_table(workspace.partition("user_seen", DAY))
    user = seen["user_id"][0].as_py()
    features = OnlineFeatures(workspace.features, workspace.feature_store).read(user)
    assert features.known and sorted(features.seen.tolist()) == sorted(seen["seen_item_id"][0].as_py())


def test_the_release_is_whole_and_in_both_channels(workspace, release) -> None:
    _, manifest = release
    store = DirectoryStore(workspace.store)
    decision = read_decision(store, manifest.release_id)
    assert decision is not None
    channels = {name: read_channel(store, name) for name in ("candidate", "production")}
    assert channels["candidate"].release_id == manifest.release_id
    assert (channels["production"] is not None) == decision["passed"]
    assert manifest.parents == [] and manifest.day == DAY and manifest.metrics["evaluation"]["rows"]
    assert not list((workspace.store / ".staging").glob("*"))


def test_triton_recommended_legal_unseen_items_to_ten_users(workspace, release, first) -> None:
    """Checked here without the code that served them: against the lake and the release's own catalogue."""
    folder, manifest = release
    found = json.loads((workspace.run_dir(DAY) / "recommendations.json").read_text())
    assert found["release_id"] == manifest.release_id and len(found["users"]) == 10
    table = pq.read_table(folder / "tokenizer" / "sid_table.parquet").to_pylist()
    sid_of = {row["item_id"]: [row["c0"], row["c1"], row["c2"]] for row in table}
    shown: dict[int, set[int]] = {}
    for file in (workspace.lake / "impressions").glob("dt=*/part-0.parquet"):
        if file.parent.name <= f"dt={DAY}":
            rows = pq.read_table(file, columns=["user_id", "item_id"])
            for user, item in zip(rows["user_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True):
                shown.setdefault(user, set()).add(item)
    for user in found["users"]:
        assert user["items"] and f"user {user['user_id']}: " in first.stdout
        for item in user["items"]:
            assert list(item["sid"]) == sid_of[item["item_id"]]
            assert item["item_id"] not in shown.get(user["user_id"], set())


def test_the_floors_stand_beside_the_model_in_the_report(workspace, outcomes, first) -> None:
    report = json.loads((workspace.run_dir(DAY) / "report.json").read_text())
    assert report["evaluation"]["rows"] == outcomes["evaluate"].metrics["rows"] and report["simulated"]
    names = {row["name"] for row in report["evaluation"]["rows"]}
    assert {"onerec", "onerec_pretrained", "most_popular_all", "most_popular_3d"} <= names
    page = (workspace.run_dir(DAY) / "report.html").read_text()
    assert report["release"]["release_id"] in page and "simulat" in page.lower() and "<script src" not in page
    assert "most_popular_all" in first.stdout and "report.html" in first.stdout


def test_the_same_day_again_reuses_every_step(place, workspace, outcomes) -> None:
    again = onerec("daily", "--data", str(place / "logs"), "--root", str(place / "var"), "--date", DAY)
    assert again.returncode == 0, again.stdout + again.stderr
    reused = [line.split()[0] for line in again.stdout.splitlines() if "reused (took" in line]
    assert sorted(reused) == sorted(STEPS)
    assert Outcome.read(workspace.step_dir(DAY, "publish")).digest == outcomes["publish"].digest


def test_the_next_day_starts_from_this_one_and_a_failure_says_what_to_do(place, workspace, release) -> None:
    """The next day first with a log that lost a column, then whole."""
    arguments = ["daily", "--data", str(place / "logs"), "--root", str(place / "var"), "--date", LAST]
    log = next((place / "logs").glob(f"impressions/*{LAST}*"))
    file = log if log.is_file() else next(log.glob("*.parquet"))
    whole = file.read_bytes()
    pq.write_table(pq.read_table(file).drop_columns(["item_id"]), file)
    failed = onerec(*arguments)
    assert failed.returncode == 1
    assert (
        "FAILED at step ingest: " in failed.stderr and "item_id" in failed.stderr and "Traceback" not in failed.stderr
    )
    assert f"--date {LAST} " in failed.stderr and "--from ingest" in failed.stderr and "ingest.log" in failed.stderr
    file.write_bytes(whole)

    done = onerec(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    _, first_manifest = release
    published = Outcome.read(workspace.step_dir(LAST, "publish"))
    _, manifest = load_release(DirectoryStore(workspace.store), published.metrics["release_id"])
    assert manifest.parents == [first_manifest.release_id] and day_before(manifest.day) == first_manifest.day
    assert Outcome.read(workspace.step_dir(LAST, "tokenize")).metrics["changed_ids"] == 0


def test_a_release_can_be_looked_at_and_rolled_back(place, workspace) -> None:
    env = os.environ | {"ONEREC_ROOT": str(place / "var")}
    listed = onerec("release", "list", env=env)
    assert listed.returncode == 0 and f"{DAY}-" in listed.stdout and f"{LAST}-" in listed.stdout
    ids = [Outcome.read(workspace.step_dir(day, "publish")).metrics["release_id"] for day in (DAY, LAST)]
    for action in (["promote", ids[0]], ["promote", ids[1]], ["rollback"]):
        done = onerec("release", *action, env=env)
        assert done.returncode == 0, done.stderr
    assert read_channel(DirectoryStore(workspace.store), "production").release_id == ids[0]
