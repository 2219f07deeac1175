"""The tokenize step: a failed gate ends it by name, and a request to refit stays with its day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kfp_components.context import Run
from kfp_components.run import arguments, main
from kfp_components.step import Outcome
from kfp_components.tokenize import step
from kfp_components.workspace import Workspace
from models.tokenizer import refresh
from models.tokenizer.gates import TokenizerRefused

DAY = "2022-05-05"
GATES = [
    {"gate": "utilization", "value": 0.41, "side": "at least", "limit": 0.9, "passed": False},
    {"gate": "churn", "value": None, "side": "at most", "limit": 0.9, "passed": None},
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Run:
    """A first day whose training sets exist and whose refresh is the test's."""
    workspace = Workspace(root=str(tmp_path), source="logs")
    for table in ("training", "items"):
        file = workspace.partition(table, DAY)
        file.parent.mkdir(parents=True)
        file.touch()
        (file.parent / "_manifest.json").write_text('{"digest": "d"}')
    monkeypatch.setattr(step, "partition_digests", lambda files: {file.parent.name: "d" for file in files})
    return Run(workspace=workspace, day=DAY, seed=0)


def _outcomes(run: Run) -> dict[str, Outcome]:
    """What earlier steps left."""
    left = {}
    for name, of in (("tables", "ingest"), ("features", "pathways")):
        left[name] = run.step(of, inputs=[], rooms=("releases",), body=lambda out, progress: {"n": 1})
    return left


def test_a_tokenizer_that_fails_a_gate_is_refused_by_name_and_leaves_no_outcome(run, monkeypatch) -> None:
    monkeypatch.setattr(refresh, "refresh_tokenizer", lambda **_: {"gates": GATES})
    with pytest.raises(TokenizerRefused, match=r"utilization is 0\.41, at least 0\.9 is asked for"):
        step.run(run, **_outcomes(run))
    assert not run.workspace.step_dir(DAY, "tokenize").exists()
    last = json.loads(run.workspace.progress(DAY).read_text().splitlines()[-1])
    assert last["event"] == "failed" and last["user"] and "utilization" in last["error"]


def test_a_refit_is_another_day_than_one_without_and_is_asked_of_the_refresh(run, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(refresh, "refresh_tokenizer", lambda **given: asked.append(given) or {"gates": []})
    left = _outcomes(run)
    plain = step.run(run, **left)
    refit = step.run(run, **left, refit=True)
    assert [given["refit"] for given in asked] == [False, True] and plain.key != refit.key
    assert asked[0]["previous"] is None and [p.parent.name for p in asked[0]["training_sets"]] == [f"dt={DAY}"]
    assert step.run(run, **left, refit=True).reused


def test_a_killed_fit_finds_its_alignment_again_and_a_done_one_leaves_none(run, monkeypatch) -> None:
    found = []

    def killed_once(*, work: Path, **_) -> dict:
        found.append((work / "checkpoint").exists())
        work.mkdir(parents=True, exist_ok=True)
        (work / "checkpoint").touch()
        if len(found) == 1:
            raise KeyboardInterrupt
        return {"gates": []}

    monkeypatch.setattr(refresh, "refresh_tokenizer", killed_once)
    left = _outcomes(run)
    with pytest.raises(KeyboardInterrupt):
        step.run(run, **left)
    assert (run.workspace.base / "checkpoints" / DAY / "alignment" / "checkpoint").exists()
    step.run(run, **left)
    assert found == [False, True] and not (run.workspace.base / "checkpoints" / DAY / "alignment").exists()


def test_the_work_folder_of_a_refresh_reaches_the_alignment(tmp_path: Path, monkeypatch) -> None:
    class Reached(Exception):
        pass

    def represent(table, *, folder: Path | None, **_):
        raise Reached(folder)

    monkeypatch.setattr(refresh, "represent", represent)
    monkeypatch.setattr(refresh, "read_rows", lambda items: None)
    monkeypatch.setattr(refresh, "read_digests", lambda items: ([1], [2]))
    monkeypatch.setattr(refresh, "read_positives", lambda sets, ids: (None, None))
    with pytest.raises(Reached, match="work"):
        refresh.refresh_tokenizer(
            items=tmp_path, training_sets=[], previous=None, out=tmp_path, seed=0, work=tmp_path / "work"
        )


def test_a_request_to_refit_stays_with_its_day(run) -> None:
    """Whichever DAG runs the day next hands it on; other days know nothing of it."""
    _outcomes(run)
    assert arguments(run, "tokenizer", "")["refit"] is False
    command = ["--pipeline", "tokenizer", "--day", "2022-05-06", "--root", run.workspace.root, "--source", "logs"]
    assert main([*command, "--refit"]) == 1  # nothing was ingested on that day; the request stays all the same
    assert run.workspace.refit_requested("2022-05-06") and not run.workspace.refit_requested(DAY)
    run.workspace.request_refit(DAY)
    assert arguments(run, "tokenizer", "")["refit"] is True
