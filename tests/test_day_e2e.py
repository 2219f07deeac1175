"""The whole day for real, on a small simulated log: Airflow, KFP, Great Expectations, Feast, PyTorch, Triton over gRPC.

.venv/ml/bin/python -m pytest tests/test_day_e2e.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kuairand_layout import write_kuairand

from cli.airflow_run import DAY_DAGS, airflow, start
from kfp_components.digest import REPOSITORY
from kfp_components.step import Outcome
from kfp_components.workspace import PIPELINES, STEPS, TRAFFIC, Workspace, day_before
from releases import rollout
from releases.channels import promote, read_channel, rollback
from releases.gates import read_decision
from releases.manifest import load_release
from releases.object_store import DirectoryStore
from serving.client import RecommendClient
from serving.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
DAY, LAST = "2026-01-04", "2026-01-05"
NO_EXAMPLE = re.compile(r"\bONEREC_\w+=|[<|$]")  # needs a cluster's settings or a person's
RUN = [step for step in STEPS if step not in TRAFFIC]  # nobody serves while the day is made
ONEREC = str(Path(sys.executable).with_name("onerec"))


def run(command: list[str], root: Path) -> subprocess.CompletedProcess:
    """A command in the repository, with another workspace than the developer's own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    env |= {"ROOT": str(root), "ONEREC_ROOT": str(root)}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A workspace whose simulated logs are four days of a small service; `make daily` finds them there."""
    root = tmp_path_factory.mktemp("day") / "var"
    size = ["--days", "4", "--end", LAST, "--users", "120", "--items", "100", "--impressions", "4000"]
    done = run([ONEREC, "simulate", str(root / "simulated" / "logs"), *size], root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def first(root) -> subprocess.CompletedProcess:
    """The newcomer's command. No DATE, so the day is the last but one of the logs, and it bootstraps."""
    return run(["make", "daily"], root)


@pytest.fixture(scope="module")
def workspace(root, first) -> Workspace:
    assert first.returncode == 0, first.stdout + first.stderr
    return Workspace(root=str(root), source="simulated")


@pytest.fixture(scope="module")
def outcomes(workspace) -> dict[str, Outcome]:
    return {step: Outcome.read(workspace.step_dir(DAY, step)) for step in RUN}


@pytest.fixture(scope="module")
def release(workspace, outcomes) -> tuple[Path, object]:
    return load_release(DirectoryStore(workspace.store), outcomes["publish"].metrics["release_id"])


def test_every_step_ran_and_said_so_in_one_line(first, workspace) -> None:
    done = [line.split()[0] for line in first.stdout.splitlines() if "done," in line and "MiB at most" in line]
    # Pre-training and the reward model do not wait for each other, so KFP may run either first.
    assert sorted(done) == sorted(RUN) and done[0] == "ingest" and done[-1] == "report"


def test_airflow_ran_the_pipelines_as_its_own_tasks(root, workspace) -> None:
    with sqlite3.connect(root / "airflow" / "airflow.db") as db:
        rows = db.execute("SELECT task_id, state FROM task_instance WHERE task_id NOT LIKE 'wait_for_%'").fetchall()
        runs = db.execute("SELECT dag_id, logical_date, state FROM dag_run ORDER BY id").fetchall()
    assert dict(rows) == dict.fromkeys(PIPELINES, "success") | dict.fromkeys(TRAFFIC, "skipped")
    assert [(dag, date[:10], state) for dag, date, state in runs] == [(dag, DAY, "success") for dag in DAY_DAGS]


def test_each_step_consumed_what_the_one_before_it_left(outcomes) -> None:
    for name, outcome in outcomes.items():
        for key, digest in outcome.inputs.items():
            day, step = key.split("/")
            assert day == DAY and STEPS.index(step) < STEPS.index(name) and outcomes[step].digest == digest
    assert not [name for name, o in outcomes.items() if not o.inputs and name != "ingest"]


def test_great_expectations_judged_the_tables(workspace, outcomes) -> None:
    quality = outcomes["validate"].metrics
    assert quality["critical_failed"] == 0 and len(quality["results"]) > 20
    page = workspace.run_dir(DAY) / "quality" / "docs" / "index.html"
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
    assert "ONEREC_EXPORT" in manifest.metrics["export"]["reason"]
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


def test_the_same_day_again_reuses_every_step(root, workspace, outcomes) -> None:
    again = run(["make", "daily", f"DATE={DAY}"], root)
    assert again.returncode == 0, again.stdout + again.stderr
    reused = [line.split()[0] for line in again.stdout.splitlines() if "reused (took" in line]
    assert sorted(reused) == sorted(RUN)  # each once; pretrain and reward run side by side, so their order is chance
    assert Outcome.read(workspace.step_dir(DAY, "publish")).digest == outcomes["publish"].digest


@pytest.fixture(scope="module")
def second(root, workspace, release) -> tuple[subprocess.CompletedProcess, subprocess.CompletedProcess]:
    """The next day twice: first with a log that lost a column, then whole."""
    command = ["make", "daily", f"DATE={LAST}"]
    file = next((root / "simulated" / "logs" / "impressions" / f"dt={LAST}").glob("*.parquet"))
    whole = file.read_bytes()
    pq.write_table(pq.read_table(file).drop_columns(["item_id"]), file)
    failed = run(command, root)
    file.write_bytes(whole)
    return failed, run(command, root)


def test_a_failure_says_what_to_do(second) -> None:
    failed, _ = second
    assert f"runs/{LAST}/report.html" in failed.stderr
    assert failed.returncode
    assert "FAILED at step ingest: " in failed.stderr and "item_id" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert f"--date {LAST} " in failed.stderr and "--from ingest" in failed.stderr and "ingest.log" in failed.stderr


def test_the_next_day_starts_from_this_one(workspace, release, second) -> None:
    _, done = second
    assert done.returncode == 0, done.stdout + done.stderr
    _, first_manifest = release
    published = Outcome.read(workspace.step_dir(LAST, "publish"))
    _, manifest = load_release(DirectoryStore(workspace.store), published.metrics["release_id"])
    assert manifest.parents == [first_manifest.release_id] and day_before(manifest.day) == first_manifest.day
    assert Outcome.read(workspace.step_dir(LAST, "tokenize")).metrics["changed_ids"] == 0


def test_a_gap_is_refused_with_the_mend(root, workspace) -> None:
    done = run([ONEREC, "daily", "--date", "2026-01-09"], root)
    assert done.returncode == 1 and "onerec backfill --from 2026-01-0" in done.stderr, done.stderr


@pytest.fixture
def ids(workspace, second) -> list[str]:
    """The two releases; production names the second, and the first before it."""
    found = [Outcome.read(workspace.step_dir(day, "publish")).metrics["release_id"] for day in (DAY, LAST)]
    for release_id in found:
        promote(DirectoryStore(workspace.store), release_id)
    return found


def test_a_rollback_goes_to_the_release_before(root, workspace, ids) -> None:
    done = run([ONEREC, "release", "rollback"], root)
    assert done.returncode == 0, done.stderr
    assert read_channel(DirectoryStore(workspace.store), "production").release_id == ids[0]


def test_the_release_dag_lets_the_candidate_meet_traffic(root, workspace, ids, tmp_path) -> None:
    """Airflow, KFP and a real Triton that follows the store: shadow, canary, promote, and users get the new release."""
    store = DirectoryStore(workspace.store)
    rollback(store)
    judged = workspace.outcome(LAST, "gate")  # so small a day may fail its gates: here it is taken to have passed
    raw = json.loads(judged.read_text())
    judged.write_text(json.dumps(raw | {"metrics": raw["metrics"] | {"passed": True}}))
    ports = free_ports(2)
    serve = [
        sys.executable,
        "-m",
        "serving.run",
        "--store",
        str(workspace.store),
        "--log",
        str(tmp_path / "triton.log"),
    ]
    serve += ["--features", str(workspace.features), "--feature-store", str(workspace.feature_store)]
    serve += ["--grpc-port", str(ports[0]), "--metrics-port", str(ports[1]), "--threads", "1", "--max-slowdown", "1000"]
    serve += ["--max-bad-percent", "50"]  # of 100 items some users have seen every one: their answers are empty
    conf = {"root": str(root), "source": "simulated", "data": str(workspace.base / "logs"), "wait_hours": 0}
    conf |= {"servers": f"http://127.0.0.1:{ports[1]}/metrics", "rollout_answers": 10, "rollout_hours": 0.05}
    conf |= {"shadow_percents": "100", "canary_percents": "50"}
    python = airflow().with_name("python")
    dag = [str(python), str(REPOSITORY / "cli" / "airflow_day.py"), LAST, "onerec_release", "--conf", json.dumps(conf)]
    server = subprocess.Popen(serve, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    stop, served = threading.Event(), set()
    try:
        assert server.stdout is not None and server.stdout.readline().startswith(f"serving {ids[0]} ")

        def ask() -> None:
            with RecommendClient(f"127.0.0.1:{ports[0]}") as client:
                user = 0
                while not stop.is_set():
                    user = (user + 1) % 120
                    served.add(client.recommend(user, 5).release_id)

        asking = threading.Thread(target=ask)
        asking.start()
        log = tmp_path / "airflow.log"
        with start((root / "airflow").resolve(), dag, log) as process:
            assert process.wait(400) == 0, log.read_text()[-4000:]
        assert read_channel(store, "production").release_id == ids[1] and served == set(ids)
        with RecommendClient(f"127.0.0.1:{ports[0]}") as client:
            deadline = time.monotonic() + 30
            while client.recommend(1, 5).release_id != ids[1] and time.monotonic() < deadline:
                time.sleep(0.1)
            assert client.recommend(1, 5).release_id == ids[1]
        stop.set()
        asking.join(30)
    finally:
        stop.set()
        server.terminate()
        server.wait(60)
    stages = [move["stage"] for move in rollout.read(store).history if move["release_id"] == ids[1]]
    assert stages == ["shadow", "canary", "passed"]
    with sqlite3.connect(root / "airflow" / "airflow.db") as db:
        rows = db.execute(
            "SELECT task_id, state FROM task_instance WHERE run_id = (SELECT run_id FROM dag_run WHERE dag_id ="
            " 'onerec_release' ORDER BY id DESC LIMIT 1) AND dag_id = 'onerec_release'"
        ).fetchall()
    assert dict(rows) == dict.fromkeys(("wait_for_release", "gate", *TRAFFIC, "promote"), "success")


def documented() -> list[str]:
    """Every line in the `sh` blocks of README, own_logs and runbooks, but a cluster's (tests/k8s) and placeholders."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "docs" / "own_logs.md"]
    pages += sorted((REPOSITORY / "docs" / "runbooks").glob("*.md"))
    blocks = [b for page in pages for b in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)]
    lines = dict.fromkeys(line for block in blocks for line in block.splitlines() if line)
    return [line for line in lines if not line.startswith(("kubectl", "helm")) and not NO_EXAMPLE.search(line)]


@pytest.mark.parametrize("line", documented())
def test_documented_command_works(line, root, workspace, ids, tmp_path) -> None:
    """Words in capitals and the days are filled in; `make test` is this very run, and CI calls it."""
    if line == "make test":
        assert "\nmake test\n" in (REPOSITORY / ".ci" / "run").read_text()
        return
    if "DATA=LOGS" in line:  # a source of its own, in KuaiRand's layout
        root = tmp_path / "var"
        logs = write_kuairand(workspace.base / "logs", tmp_path / "kuairand")
        line = line.replace("DATA=LOGS", f"DATA={logs}").replace("DATE=2022-05-05", f"DATE={DAY}")
    if " forget " in line:  # in a workspace of its own: a tombstone makes every day another
        shutil.copytree(root, tmp_path / "var")
        root = tmp_path / "var"
    if line.endswith("--stop REASON"):  # something to stop
        rollout.move(DirectoryStore(workspace.store), f"{LAST}-0123456789ab", "shadow", percent=1, reason="a test")
    words = {"RELEASE": ids[0], "OLD": ids[0], "NEW": ids[1], "STEP": "report", "USER": "7"}
    words |= {"LOGS": str(workspace.base / "logs"), "TEXT": "because", "REASON": "because"}
    words |= {"START": "2026-01-01T00:00+00:00", "END": f"{LAST}T23:59+00:00"}
    words |= {"2022-05-03": DAY, "2022-05-05": LAST, "onerec": ONEREC}
    line = line.replace("--data LOGS ", "")  # the simulated logs are where they are looked for without it
    done = run([words.get(word, word) for word in line.split()], root)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
