"""The step `pretrain`: what its key covers, where its checkpoints lie, and where it runs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import models.training.pretrain
from kfp_components.context import Run
from kfp_components.digest import REPOSITORY
from kfp_components.pretrain import step
from kfp_components.step import Outcome
from kfp_components.workspace import Workspace

DAY = "2022-05-05"


def _outcome(name: str, path: Path) -> Outcome:
    times = {"seconds": 0.0, "peak_mib": 0.0, "started_at": "", "ended_at": ""}
    empty = {"inputs": {}, "files": {}, "outside": {}, "metrics": {}}
    return Outcome(step=name, day=DAY, key="k", digest=f"digest of {name}", path=path, **times, **empty)


@pytest.fixture
def run(tmp_path) -> tuple[Run, dict[str, Outcome]]:
    w = Workspace(root=str(tmp_path / "var"))
    part = w.features / "training" / f"dt={DAY}" / "part-0.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"")
    inputs = {"features": _outcome("pathways", tmp_path), "tokenizer": _outcome("tokenize", tmp_path / "tokenizer")}
    return Run(workspace=w, day=DAY, seed=3), inputs


def test_the_key_covers_all_code_that_the_training_runs() -> None:
    found, open_files = set(), [Path("models/training/pretrain.py")]
    while open_files:
        file = open_files.pop()
        if str(file) in found or str(file).startswith("models/onerec"):
            continue
        found.add(str(file))
        for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("models."):
                open_files.append(Path(*node.module.split(".")).with_suffix(".py"))
    assert found == set(step.ROOMS) - {"models/onerec"}


def test_checkpoints_outlive_a_failure_and_go_with_the_success(run, monkeypatch) -> None:
    one, inputs = run
    seen: list[Path] = []

    def pretrain(*, out, work, events, training_sets, previous, seed, **more) -> dict:
        assert previous is None and seed == 3 and len(training_sets) == 1 and events.parent.name == DAY
        seen.append(work)
        (work / "checkpoints").mkdir(parents=True, exist_ok=True)
        if len(seen) == 1:
            raise FloatingPointError("loss is nan at step 7")
        (out / "model.safetensors").write_text("weights")
        return {"steps": 1}

    monkeypatch.setattr(models.training.pretrain, "pretrain", pretrain)
    stale = one.workspace.base / "checkpoints" / DAY / "of other code"
    stale.mkdir(parents=True)
    with pytest.raises(FloatingPointError):
        step.run(one, **inputs)
    assert seen[0].is_dir() and not stale.exists()
    assert seen[0].is_relative_to(one.workspace.base) and not seen[0].is_relative_to(one.workspace.base / "days")
    outcome = step.run(one, **inputs)
    assert seen[1] == seen[0] and not seen[0].exists() and outcome.metrics == {"steps": 1}
    assert step.run(one, **inputs).reused


def test_other_processes_get_the_same_files_and_another_key(run, monkeypatch) -> None:
    one, inputs = run
    asked: dict = {}

    def launch(how, *, arguments, name, out, progress) -> dict:
        asked.update(how=how, arguments=arguments, name=name)
        (out / "model.safetensors").write_text("weights of four")
        return json.loads('{"steps": 2}')

    monkeypatch.setattr(step, "launch", launch)
    monkeypatch.setenv("ONEREC_TRAINER", "torchrun")
    monkeypatch.setenv("ONEREC_TRAINER_PROCESSES", "4")
    outcome = step.run(one, **inputs)
    given = dict(zip(asked["arguments"][::2], asked["arguments"][1::2]))
    assert asked["how"].processes == 4 and outcome.metrics == {"steps": 2}
    assert given["--training-sets"].endswith("part-0.parquet") and given["--seed"] == "3" and "--previous" not in given
    assert asked["name"].startswith(f"onerec-pretrain-{DAY}-") and len(asked["name"]) <= 63
    monkeypatch.delenv("ONEREC_TRAINER")
    monkeypatch.setattr(models.training.pretrain, "pretrain", lambda **more: {"steps": 1})
    assert not step.run(one, **inputs).reused
