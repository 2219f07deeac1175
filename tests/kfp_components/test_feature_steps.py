"""The steps `ingest`, `validate`, `pathways` and `materialize`: what they ask of their rooms, when they run again."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest

import data_quality.checkpoint
import feature_repo.build
import feature_repo.store
from datasets.simulator import simulate
from datasets.tombstones import Tombstones
from kfp_components.context import Run
from kfp_components.ingest.step import run as ingest
from kfp_components.materialize.step import run as materialize
from kfp_components.pathways.step import run as pathways
from kfp_components.validate import pathways as pathway_check
from kfp_components.validate.step import run as validate
from kfp_components.workspace import Workspace, day_before
from tests.kfp_components.steps import left

DAY, NEXT = "2025-01-02", "2025-01-03"
INTERVAL = ["2025-01-01T16:00:00+00:00", "2025-01-02T16:00:00+00:00"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(workspace=Workspace(root=str(tmp_path / "var"), source="logs"), day=DAY, seed=0)


def test_ingest_takes_every_day_at_first_and_later_one_and_runs_again_for_mended_logs(run, tmp_path) -> None:
    logs = tmp_path / "logs"
    simulate(logs, days=3, end=dt.date(2025, 1, 3), users=40, items=60, impressions=900, progress=lambda _: None)
    first = ingest(run, data=str(logs))
    assert first.metrics["bootstrap"] and first.metrics["simulated"] and first.whole()
    days = {Path(name).parent.name for name in first.outside if "impressions" in name}
    assert days == {"dt=2025-01-01", f"dt={DAY}", f"dt={NEXT}"}  # the last is there to evaluate on
    assert ingest(run, data=str(logs)).reused

    file = next((logs / "impressions" / f"dt={DAY}").glob("*.parquet"))
    file.touch()
    again = ingest(run, data=str(logs))
    assert not again.reused and again.digest == first.digest  # the same rows: nothing after it runs again
    Tombstones.read(run.workspace.base).add([1], dt.datetime.now(dt.UTC)).write(run.workspace.base)
    assert not ingest(run, data=str(logs)).reused

    left(run, "pathways")
    later = ingest(Run(workspace=run.workspace, day=NEXT, seed=0), data=str(logs))
    assert not later.metrics["bootstrap"] and not any("2025-01-01" in name for name in later.outside)


def test_validate_stops_the_day_on_a_critical_failure_and_keeps_its_pages(run, monkeypatch) -> None:
    bad = {"severity": "critical", "success": False}
    found: dict[str, Any] = {"critical_failed": 1, "results": [bad]}

    def check(*, lake, day, days, out, progress) -> dict[str, Any]:
        assert (lake, day, days) == (run.workspace.lake, DAY, [DAY])
        (out / "docs").mkdir(parents=True, exist_ok=True)
        (out / "docs" / "index.html").write_text("page")
        return found

    monkeypatch.setattr(data_quality.checkpoint, "validate", check)
    monkeypatch.setattr(data_quality.checkpoint, "sentence", lambda _: "user_id is missing")
    tables = left(run, "ingest", {"days": [DAY]})
    with pytest.raises(ValueError, match="user_id is missing"):
        validate(run, tables=tables)
    page = run.workspace.run_dir(DAY) / "quality" / "docs" / "index.html"
    assert page.is_file() and not run.workspace.outcome(DAY, "validate").exists()
    found |= {"critical_failed": 0, "results": []}
    assert validate(run, tables=tables).metrics["critical_failed"] == 0
    assert validate(run, tables=tables).reused
    page.unlink()
    assert not validate(run, tables=tables).reused  # a day without its pages is judged again


def test_pathways_go_on_from_the_day_before_and_leave_nothing_when_their_check_fails(run, monkeypatch) -> None:
    asked: dict[str, Any] = {}
    w = run.workspace

    def build(**given: Any) -> dict[str, Any]:
        asked.update(given)
        file = w.features / "user_short" / f"dt={given['day']}" / "part-0.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("rows")
        w.feature_store.mkdir(exist_ok=True)
        return {"written": [str(file.relative_to(w.features))], "end_of_day": INTERVAL[1], "interval": INTERVAL}

    def refuse(run: Run, progress) -> dict[str, Any]:
        raise ValueError("user_short holds a user twice")

    monkeypatch.setattr(feature_repo.build, "build_features", build)
    monkeypatch.setattr(pathway_check, "check_pathways", refuse)
    inputs = {"tables": left(run, "ingest", {"days": [DAY]}), "quality": left(run, "validate")}
    with pytest.raises(ValueError, match="a user twice"):
        pathways(run, **inputs)
    assert not w.outcome(DAY, "pathways").exists() and asked["bootstrap"] and asked["previous"] is None

    monkeypatch.setattr(pathway_check, "check_pathways", lambda run, progress: {"warning_failed": 0})
    first = pathways(run, **inputs)
    assert list(first.outside) == [f"features/user_short/dt={DAY}/part-0.parquet"] and pathways(run, **inputs).reused
    then = Run(workspace=w, day=NEXT, seed=0)
    second = pathways(then, tables=left(then, "ingest"), quality=left(then, "validate"))
    assert asked["previous"] == first.metrics and not asked["bootstrap"]
    assert second.inputs[f"{day_before(NEXT)}/pathways"] == first.digest
    gap = Run(workspace=w, day="2025-01-05", seed=0)
    with pytest.raises(ValueError, match="starts from the features of 2025-01-04, which are not here"):
        pathways(gap, tables=left(gap, "ingest"), quality=left(gap, "validate"))


def test_materialize_fills_exactly_the_interval_and_again_when_the_store_is_gone(run, monkeypatch) -> None:
    asked: list[tuple[dt.datetime, dt.datetime]] = []

    def fill(*, features, feature_store, start, end) -> None:
        asked.append((start, end))
        feature_store.mkdir(exist_ok=True)

    monkeypatch.setattr(feature_repo.store, "materialize", fill)
    features = left(run, "pathways", {"interval": INTERVAL})
    materialize(run, features=features)
    assert materialize(run, features=features).reused and len(asked) == 1
    assert [when.isoformat() for when in asked[0]] == INTERVAL
    shutil.rmtree(run.workspace.feature_store)
    assert not materialize(run, features=features).reused and len(asked) == 2
