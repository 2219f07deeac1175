"""The steps `reward`, `align` and `evaluate`: what they start from on a first and on a later day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import models.evaluation.evaluate
import models.reward.train
import models.training.align
from kfp_components.align.step import run as align
from kfp_components.context import Run
from kfp_components.evaluate.step import run as evaluate
from kfp_components.lineage import open_store
from kfp_components.reward.step import run as reward
from kfp_components.workspace import Workspace, day_before
from models.training.align_config import AlignConfig, align_later_day
from releases.channels import promote
from tests.kfp_components.steps import left, partition
from tests.kfp_components.test_lineage import released

DAY = "2022-05-05"


class Asked(dict):
    """A room's function that keeps what it was asked, and writes one file."""

    def __call__(self, *, out: Path, **given: Any) -> dict[str, Any]:
        self.update(given)
        (out / "made.txt").write_text("made")
        return {"made": 1}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A day whose tables are there, and those of the day before."""
    w = Workspace(root=str(tmp_path / "var"), source="logs")
    for day in (day_before(DAY), DAY):
        partition(w, "training", day)
    partition(w, "items", DAY)
    partition(w, "evaluation", DAY)
    return Run(workspace=w, day=DAY, seed=3)


def days_of(files: list[Path]) -> list[str]:
    return [file.parent.name.removeprefix("dt=") for file in files]


def test_reward_learns_from_all_days_at_first_and_then_goes_on_from_the_release(run, monkeypatch, tmp_path) -> None:
    asked = Asked()
    monkeypatch.setattr(models.reward.train, "train_reward", asked)
    inputs = {"features": left(run, "pathways"), "tokenizer": left(run, "tokenize")}
    reward(run, **inputs)
    assert asked["previous"] is None and days_of(asked["training_sets"]) == [day_before(DAY), DAY]
    assert asked["seed"] == 3 and asked["items"] == run.workspace.partition("items", DAY)
    assert reward(run, **inputs).reused
    release_id = released(run.workspace, day_before(DAY), tmp_path)
    reward(run, **inputs)
    assert asked["previous"].parent.name == release_id and days_of(asked["training_sets"]) == [DAY]


def test_align_has_its_own_settings_on_a_first_day(run, monkeypatch, tmp_path) -> None:
    asked = Asked()
    monkeypatch.setattr(models.training.align, "align", asked)
    inputs = {
        name: left(run, step)
        for name, step in {
            "features": "pathways",
            "tokenizer": "tokenize",
            "pretrained": "pretrain",
            "reward": "reward",
        }.items()
    }
    align(run, **inputs)
    assert asked["config"] == AlignConfig() and asked["model"] == inputs["pretrained"].path
    assert days_of(asked["training_sets"]) == [DAY]  # the newest day, on a first day too
    released(run.workspace, day_before(DAY), tmp_path)
    assert not align(run, **inputs).reused and asked["config"] == align_later_day()


def test_evaluate_judges_against_what_was_in_production_when_the_day_began(run, monkeypatch, tmp_path) -> None:
    asked, w = Asked(), run.workspace
    monkeypatch.setattr(models.evaluation.evaluate, "evaluate", asked)
    steps = {"features": "pathways", "tokenizer": "tokenize", "pretrained": "pretrain", "model": "align"}
    inputs = {name: left(run, step) for name, step in (steps | {"reward": "reward"}).items()}
    assert evaluate(run, **inputs).metrics["production_release"] is None and asked["production"] is None
    assert days_of(asked["training_sets"]) == [day_before(DAY), DAY]  # the floors know every day
    before = released(w, day_before(DAY), tmp_path)
    promote(open_store(w), before)
    again = evaluate(run, **inputs)
    assert not again.reused and again.metrics["production_release"] == asked["production"].name == before
    promote(open_store(w), released(w, DAY, tmp_path, outcomes=False))  # of the day itself: it began without it
    assert evaluate(run, **inputs).reused
