"""The house rules for DAGs, as assertions.  New snapshot: ONEREC_SNAPSHOT=write python -m pytest tests/dags"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DeadlineReference
from conftest import DAGS
from house import OWNER
from tags import Tag

FORBIDDEN = ("torch", "feast", "great_expectations", "kfp", "pandas", "numpy", "datasets", "data_quality")
FORBIDDEN += ("feature_repo", "kfp_components", "models", "releases", "serving", "cli")
SNAPSHOT = Path(__file__).with_name("graph.json")
PARSE_S = 1.0


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(dag_folder=str(DAGS))


def test_every_dag_file_imports(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert {Path(dag.fileloc).stem for dag in bag.dags.values()} == {f.stem for f in DAGS.glob("onerec_*.py")}
    assert all(Path(dag.fileloc).stem == dag.dag_id for dag in bag.dags.values())


def test_tags_come_from_the_enum_with_one_tier_and_one_rerun_meaning(bag: DagBag) -> None:
    for dag in bag.dags.values():
        assert set(dag.tags) <= set(Tag), dag.dag_id
        for group in ("impact/", "rerun/"):
            assert len([t for t in dag.tags if t.startswith(group)]) == 1, (dag.dag_id, group)


def test_documentation_is_an_on_call_page(bag: DagBag) -> None:
    must = ("**What it does**", "**Inputs**", "**Outputs**", "**When it fails**", "**Running it again**")
    must += ("progress.jsonl", "onerec backfill", "onerec release rollback")
    for dag in bag.dags.values():
        assert [m for m in must if m not in (dag.doc_md or "")] == [], dag.dag_id


def test_runbooks_that_pages_name_exist(bag: DagBag) -> None:
    here = {p.stem for p in (DAGS.parent / "docs" / "runbooks").glob("*.md")}
    for dag in bag.dags.values():
        assert set(re.findall(r"runbook (\w+)", dag.doc_md or "")) <= here, dag.dag_id


def test_messages_that_pages_quote_are_said_by_the_code(bag: DagBag) -> None:
    """A page that quotes what nobody says helps nobody. Not ours: the words of the operating system and of torch."""
    rooms = ("cli", "datasets", "kfp_components", "models", "releases", "serving", "dags/operators")
    code = "".join(file.read_text() for room in rooms for file in (DAGS.parent / room).rglob("*.py"))
    foreign = {"No space left on device", "out of memory", "loss is nan"}  # the last: f"loss is {loss}"
    for dag in bag.dags.values():
        for quoted in set(re.findall(r'(?<![{:] )"([^"\n{}]+)"', dag.doc_md or "")) - foreign:
            for part in re.split(r"\.\.\.|\b[A-Z]{3,}\b|\d+ ", quoted):
                assert part.strip() in code, f"{dag.dag_id}: {quoted!r}"


def test_runs_do_not_overlap_catch_up_or_run_for_ever(bag: DagBag) -> None:
    for dag in bag.dags.values():
        assert dag.catchup is False and dag.max_active_runs == 1, dag.dag_id
        assert dag.dagrun_timeout and dag.dagrun_timeout <= dt.timedelta(hours=30), dag.dag_id
        for task in dag.tasks:
            assert task.owner == OWNER and task.execution_timeout and task.execution_timeout <= dag.dagrun_timeout
            assert task.retry_exponential_backoff and task.max_retry_delay, task.task_id
            assert task.on_failure_callback, task.task_id


def test_every_dag_has_a_deadline_before_its_timeout(bag: DagBag) -> None:
    """A run of a day starts when the day is over; and never DAGRUN_QUEUED_AT, with which no run could be cleared."""
    for dag in bag.dags.values():
        (alert,) = dag.deadline
        late = alert.interval - (dt.timedelta(days=1) if dag.schedule else dt.timedelta())
        assert dt.timedelta() < late < dag.dagrun_timeout, dag.dag_id
        assert alert.callback.path == "alerts.deadline_missed"
        assert alert.reference == DeadlineReference.DAGRUN_LOGICAL_DATE, dag.dag_id


def test_the_scheduler_of_a_backfill_has_no_deadlines(monkeypatch) -> None:
    from house import hours, house

    monkeypatch.setenv("ONEREC_SCHEDULE_UNTIL", "2022-05-05")
    found = house(Tag.TIER_1, Tag.RERUN_INTERVAL, deadline=hours(1), timeout=hours(2))
    assert found["deadline"] is None and found["end_date"] == dt.datetime(2022, 5, 5, tzinfo=dt.UTC)


def test_every_task_is_in_a_pool_of_the_file(bag: DagBag) -> None:
    pools = json.loads((DAGS / "pools.json").read_text())
    used = {task.pool for dag in bag.dags.values() for task in dag.tasks}
    assert used == set(pools), "a task in a pool that does not exist is never scheduled"
    assert pools["onerec_pipelines"]["slots"] > 1, "a backfill takes one slot: the live day needs another"


def test_retries_are_for_the_cluster(monkeypatch) -> None:
    from house import hours, house

    args = (Tag.TIER_1, Tag.RERUN_INTERVAL)
    monkeypatch.delenv("ONEREC_KFP_HOST", raising=False)
    assert house(*args, deadline=hours(1), timeout=hours(2))["default_args"]["retries"] == 0
    monkeypatch.setenv("ONEREC_KFP_HOST", "http://kfp")
    assert house(*args, deadline=hours(1), timeout=hours(2))["default_args"]["retries"] == 2


def test_params_are_typed_and_described(bag: DagBag) -> None:
    for dag in bag.dags.values():
        for name in dag.params:
            schema = dag.params.get_param(name)
            assert schema.schema.get("type") and schema.description, (dag.dag_id, name)


def graph(bag: DagBag) -> dict:
    """What a reviewer should see change: tasks, edges, what they run, schedules, assets."""
    found = {}
    for dag in sorted(bag.dags.values(), key=lambda d: d.dag_id):
        tasks = {}
        for task in sorted(dag.tasks, key=lambda t: t.task_id):
            what = {"then": sorted(task.downstream_task_ids), "pool": task.pool}
            named = {k: getattr(task, k, "") for k in ("pipeline", "step", "yesterday", "arguments", "refit")}
            what |= {k: v for k, v in named.items() if v and isinstance(v, str | list)}
            what |= {"makes": sorted(a.name for a in task.outlets)} if task.outlets else {}
            tasks[task.task_id] = what
        schedule = getattr(dag.schedule, "expression", None) or getattr(dag.schedule, "_expression", None)
        found[dag.dag_id] = {"schedule": str(schedule), "tasks": tasks}
    return found


def test_the_task_graph_is_the_reviewed_one(bag: DagBag) -> None:
    now = json.dumps(graph(bag), indent=1) + "\n"
    if os.environ.get("ONEREC_SNAPSHOT") == "write":
        SNAPSHOT.write_text(now)
    assert now == SNAPSHOT.read_text(), "the task graph changed: read the difference, then write a new snapshot"


def test_every_pipeline_of_the_day_waits_for_the_one_before(bag: DagBag) -> None:
    """features <- tokenizer <- training <- release, and days train in order."""
    waits = {"onerec_tokenizer": "materialize", "onerec_training": "tokenize", "onerec_release": "publish"}
    for dag_id, step in waits.items():
        (first,) = [t for t in bag.dags[dag_id].tasks if not t.upstream_task_ids]
        assert first.step == step and len(first.downstream_task_ids) == 1, dag_id
    for dag_id in ("onerec_tokenizer", "onerec_training"):
        (wait,) = [t for t in bag.dags[dag_id].tasks if t.task_id.startswith("wait_")]
        assert wait.yesterday == "publish", dag_id


def test_a_release_meets_traffic_before_it_is_promoted(bag: DagBag) -> None:
    """gate -> shadow -> canary -> promote; without servers the middle is skipped, and promote goes on all the same."""
    tasks = {t.task_id: t for t in bag.dags["onerec_release"].tasks}
    order = ["wait_for_release", "gate", "shadow", "canary", "promote"]
    assert list(tasks) == order and tasks["promote"].downstream_task_ids == set()
    for before, after in itertools.pairwise(order):
        assert tasks[before].downstream_task_ids == {after}
    for stage in ("shadow", "canary"):
        assert tasks[stage].skip_without_servers and tasks[stage].pool == "onerec_light"
        assert tasks[stage].trigger_rule == tasks["promote"].trigger_rule == "none_failed"
    assert tasks["promote"].servers == tasks["canary"].servers == "{{ params.servers }}"


def test_dag_files_are_wiring_only() -> None:
    for file in DAGS.glob("*.py"):
        assert len(file.read_text().splitlines()) < 150, file


def test_parsing_is_quick_and_imports_nothing_heavy_and_none_of_our_rooms() -> None:
    """Each file in CPU time of its own, after Airflow itself is imported: no load of the machine matters."""
    files = sorted(str(file) for file in DAGS.glob("onerec_*.py"))
    code = (
        "import json, sys, time; from airflow.dag_processing.dagbag import DagBag; import airflow.sdk\n"
        f"DagBag(dag_folder='/nonexistent-{time.time_ns()}'); took = {{}}\n"
        f"for file in {files!r}:\n"
        "    t = time.process_time(); bag = DagBag(dag_folder=file); took[file] = time.process_time() - t\n"
        "    assert len(bag.dags) == 1 and not bag.import_errors, bag.import_errors\n"
        f"print(json.dumps(took)); print(sorted(set({FORBIDDEN!r}) & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(DAGS)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=DAGS.parent)
    assert done.returncode == 0, done.stderr
    took, heavy = done.stdout.splitlines()[-2:]
    assert heavy == "[]" and list(json.loads(took)) == files
    assert {file: s for file, s in json.loads(took).items() if s >= PARSE_S} == {}
