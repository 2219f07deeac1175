"""The steps `publish`, `serve` and `gate`, on a real store: a release is the same for the same files, and is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

import serving.check
from kfp_components.context import Run
from kfp_components.gate.step import run as gate
from kfp_components.lineage import open_store
from kfp_components.publish import step as publish_step
from kfp_components.publish.step import PARTS
from kfp_components.serve.step import run as serve
from kfp_components.step import Outcome
from kfp_components.workspace import Workspace, day_before
from releases.channels import read_channel
from releases.gates import read_decision
from releases.manifest import load_release
from tests.kfp_components.steps import left, partition
from tests.kfp_components.test_lineage import released

DAY = "2022-05-05"
EVALUATION = {
    "legality": 1.0,
    "rows": [{"name": "onerec", "recall@50": 0.3}, {"name": "most_popular", "recall@50": 0.2}],
}
QUALITY = {"critical_failed": 0, "warning_failed": 2}
CHECK = {"legal": 1.0, "unseen": 1.0, "users": [], "latency_ms": {"p99": 40.0}}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(publish_step, "export", lambda *_: {"reason": "a test"})
    w = Workspace(root=str(tmp_path / "var"), source="logs")
    for table in ("training", "items", "evaluation"):
        partition(w, table, DAY)
    return Run(workspace=w, day=DAY, seed=0)


def publish(run: Run, fresh_from: str = "") -> Outcome:
    """With everything that a day leaves for it."""
    align = {*PARTS["model"], *PARTS["training_state"]}
    inputs = {
        "tables": left(run, "ingest"),
        "quality": left(run, "validate", QUALITY),
        "features": left(run, "pathways", {"quality": {"warning_failed": 1}}),
        "tokenizer": left(run, "tokenize", {"levels": 3}, PARTS["tokenizer"]),
        "model": left(run, "align", {"loss": 1.5}, tuple(sorted(align))),
        "reward": left(run, "reward", {"p_score_auc": {"like": 0.6}}, PARTS["reward"]),
        "evaluation": left(run, "evaluate", EVALUATION),
    }
    return publish_step.run(Run(workspace=run.workspace, day=run.day, seed=0, fresh_from=fresh_from), **inputs)


def test_publish_makes_one_release_of_a_day(run) -> None:
    first = publish(run)
    release_id = first.metrics["release_id"]
    folder, manifest = load_release(open_store(run.workspace), release_id)
    assert manifest.parents == [] and set(manifest.data) == {f"items/dt={DAY}", f"training/dt={DAY}"}
    assert manifest.metrics["data_quality_warnings"] == 3 and manifest.summaries["tokenizer"] == {"levels": 3}
    assert (folder / "training_state" / "optimizer.safetensors").is_file() and first.whole()
    again = publish(run, fresh_from="publish")
    assert not again.reused and again.metrics["release_id"] == release_id and again.digest == first.digest


def test_publish_names_the_release_that_the_day_started_from(run, tmp_path) -> None:
    before = released(run.workspace, day_before(DAY), tmp_path)
    published = publish(run).metrics
    _, manifest = load_release(open_store(run.workspace), published["release_id"])
    assert manifest.parents == published["parents"] == [before]


def test_publish_names_a_device_that_it_does_not_know(run, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("ONEREC_EXPORT", "cpu,tpu")
    with pytest.raises(ValueError, match="ONEREC_EXPORT holds 'tpu'; give cpu, cuda"):
        publish_step.export(run.workspace.base, run.workspace.base, run.workspace.base, run.workspace.base, print)


def test_serve_shows_what_was_answered_and_its_latency_makes_no_other_outcome(run, monkeypatch) -> None:
    asked: dict[str, Any] = {}

    def check(**given: Any) -> dict[str, Any]:
        asked.update(given)
        slower = CHECK["latency_ms"]["p99"] + len(asked["progress"].__name__) + asked.get("calls", 0)
        asked["calls"] = asked.get("calls", 0) + 1
        users = [{"user_id": 1, "items": [{"item_id": 7}]}]
        return CHECK | {"users": users, "latency_ms": {"p99": slower}}

    monkeypatch.setattr(serving.check, "serve_check", check)
    inputs = {"release": publish(run), "features": left(run, "pathways"), "online": left(run, "materialize")}
    first = serve(run, **inputs)
    shown = json.loads((run.workspace.run_dir(DAY) / "recommendations.json").read_text())
    assert shown["release_id"] == asked["release"].name == inputs["release"].metrics["release_id"]
    assert shown["users"] and "latency_ms" not in shown and first.metrics["latency_ms"]["p99"] > 40
    fresh = Run(workspace=run.workspace, day=DAY, seed=0, fresh_from="serve")
    again = serve(fresh, **inputs)
    assert asked["calls"] == 2 and again.metrics["latency_ms"] != first.metrics["latency_ms"]
    assert again.digest == first.digest


@pytest.mark.parametrize("recall, passed", [(0.3, True), (0.1, False)])
def test_gate_records_its_decision_and_moves_the_candidate_alone(run, recall: float, passed: bool) -> None:
    release, store = publish(run), open_store(run.workspace)
    rows = [EVALUATION["rows"][0] | {"recall@50": recall}, EVALUATION["rows"][1]]
    found = gate(
        run,
        release=release,
        quality=left(run, "validate", QUALITY),
        evaluation=left(run, "evaluate", EVALUATION | {"rows": rows}),
        check=left(run, "serve", CHECK),
    )
    release_id = release.metrics["release_id"]
    assert found.metrics["passed"] is passed and read_decision(store, release_id)["passed"] is passed
    assert read_channel(store, "candidate").release_id == release_id and read_channel(store, "production") is None
    said = run.workspace.progress(DAY).read_text()
    failed = "GATE FAILED, not for production: recall@50 against the best most-popular floor is 0.1"
    assert (failed in said) is not passed
