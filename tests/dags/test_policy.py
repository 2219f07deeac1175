"""The house rules for DAGs, as assertions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from conftest import DAGS
from tags import Tag

FORBIDDEN = ("torch", "feast", "great_expectations", "kfp", "datasets", "data_quality", "feature_repo")
FORBIDDEN += ("kfp_components", "models", "releases", "serving", "cli")


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(dag_folder=str(DAGS))


def test_every_dag_file_imports(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert set(bag.dags) == {"onerec_daily", "onerec_tokenizer"}


def test_tags_come_from_the_enum_with_one_tier_and_one_rerun_meaning(bag: DagBag) -> None:
    for dag in bag.dags.values():
        assert set(dag.tags) <= set(Tag), dag.dag_id
        for group in ("impact/", "rerun/"):
            assert len([t for t in dag.tags if t.startswith(group)]) == 1, (dag.dag_id, group)


def test_documentation_is_an_on_call_page(bag: DagBag) -> None:
    for dag in bag.dags.values():
        for must in (
            "When it fails",
            "Running it again",
            "progress.jsonl",
            "onerec backfill",
            "onerec release rollback",
        ):
            assert must in (dag.doc_md or ""), (dag.dag_id, must)


def test_runs_do_not_overlap_or_catch_up_by_themselves(bag: DagBag) -> None:
    for dag in bag.dags.values():
        assert dag.catchup is False and dag.max_active_runs == 1, dag.dag_id
        assert all(task.retries == 0 and task.owner == "recommender" for task in dag.tasks), dag.dag_id


def test_params_are_typed_and_described(bag: DagBag) -> None:
    for dag in bag.dags.values():
        for name in dag.params:
            schema = dag.params.get_param(name)
            assert schema.schema.get("type") and schema.description, (dag.dag_id, name)


def test_the_day_is_four_pipelines_in_a_row(bag: DagBag) -> None:
    dag = bag.dags["onerec_daily"]
    edges = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert edges == {"features": ["tokenizer"], "tokenizer": ["training"], "training": ["release"], "release": []}
    assert {task.pipeline for task in dag.tasks} == set(edges)


def test_the_tokenizer_has_a_dag_of_its_own_and_only_there_a_refit_is_asked_for(bag: DagBag) -> None:
    """The same two pipelines as in the day, with the same arguments, so that whichever runs second reuses the first."""
    own, day = bag.dags["onerec_tokenizer"], bag.dags["onerec_daily"]
    assert {t.task_id: sorted(t.downstream_task_ids) for t in own.tasks} == {"features": ["tokenizer"], "tokenizer": []}
    for name in ("features", "tokenizer"):
        mine, theirs = own.get_task(name), day.get_task(name)
        fields = [f for f in mine.template_fields if f != "refit"]
        assert [getattr(mine, f) for f in fields] == [getattr(theirs, f) for f in fields]
    assert own.get_task("tokenizer").refit == "{{ params.refit }}"
    assert own.params["refit"] is False and "refit" not in day.params
    assert own.get_task("features").refit is False


def test_dag_files_are_wiring_only() -> None:
    for file in DAGS.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 150, file


def test_parsing_imports_nothing_heavy_and_none_of_our_rooms() -> None:
    code = (
        "import sys; from airflow.dag_processing.dagbag import DagBag; "
        f"bag = DagBag(dag_folder={str(DAGS)!r}); assert bag.dags and not bag.import_errors; "
        f"print(sorted(set({FORBIDDEN!r}) & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(DAGS)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=Path(DAGS).parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
