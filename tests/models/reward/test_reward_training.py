"""The daily reward step on a tiny source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.onerec.features import LABELS
from models.reward.measure import impressions
from models.reward.train import train_reward
from models.training.checkpoint import Tokenizer
from models.training.data import TrainingSet
from tests.models.conftest import LIKE, Row, World, simulate_days, small_model, write_training_set


def test_impressions_mask_padding(world, tmp_path):
    rows = [Row(1, shown=[[3, LIKE, 255, 1, 1]]), Row(2, shown=[[3, 0, 1, 1, 1], [99, LIKE, 255, 1, 1]])]
    tokenizer = Tokenizer.load(world.tokenizer)
    config = small_model()[0].config
    data = TrainingSet([write_training_set(tmp_path / "a.parquet", rows)], tokenizer.catalogue, config)
    candidate, y, known = impressions(data, np.array([0, 1]))
    assert candidate.tolist() == [[0, 3], [3, 48]]  # 48: not in the catalogue
    assert known.sum(-1).tolist() == [[0, 8], [1, 8]]
    assert y[0, 1, LABELS.index("like")] == 1


def _train(world: World, out: Path, **changes) -> dict:
    out.mkdir()
    arguments = {
        "training_sets": world.training,
        "tokenizer": world.tokenizer,
        "previous": None,
        "seed": 1,
        "progress": lambda _: None,
    }
    return train_reward(out=out, **(arguments | changes))


@pytest.fixture(scope="module")
def plenty(world, tmp_path_factory) -> list[Path]:
    """Enough users that the held-out tenth has both classes."""
    return simulate_days(tmp_path_factory.mktemp("plenty"), users=400, items=48, days=2, shown=8, seed=3)


def test_it_learns_what_users_like_and_repeats_by_seed(world, plenty, tmp_path, monkeypatch):
    monkeypatch.setattr("models.reward.train.EPOCHS", 15)  # a day of a real source has thousands of batches
    metrics = _train(world, tmp_path / "a", training_sets=plenty)
    loss = [point["loss"] for point in metrics["loss"]]
    assert loss[-1] < loss[0]
    assert set(metrics["objectives"]) == set(metrics["p_score_auc"]) == set(LABELS)
    like = metrics["objectives"]["like"]
    assert like["auc"] > 0.6 < metrics["p_score_auc"]["like"]
    assert 0 < like["positives"] < like["rows"]
    assert 0 < metrics["objectives"]["hate"]["positives"] < 0.3 * like["rows"]  # counts the hated, not the rest
    assert metrics["objectives"]["follow"]["auc"] is None  # nobody follows in this source
    assert metrics["rows"] < 800 and like["rows"] == (800 - metrics["rows"]) * 8  # a user is trained on or held out
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == metrics
    _train(world, tmp_path / "b", training_sets=plenty)
    for name in ("reward.safetensors", "config.json", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_later_day_goes_on_from_the_day_before(world, tmp_path):
    _train(world, tmp_path / "a")
    later = _train(world, tmp_path / "b", training_sets=world.training[1:], previous=tmp_path / "a")
    scratch = _train(world, tmp_path / "c", training_sets=world.training[1:])
    assert later["loss"][0]["loss"] < scratch["loss"][0]["loss"]


def test_rows_without_impressions_are_passed_over(world, tmp_path):
    rows = [Row(u, shown=[[u % 48, LIKE * (u % 2), 255, 1, 1]] if u % 3 else []) for u in range(31)]
    path = write_training_set(tmp_path / "day.parquet", rows)
    metrics = _train(world, tmp_path / "a", training_sets=[path])
    assert 0 < metrics["rows"] <= 20


@pytest.mark.parametrize("shown", [[], [[3, LIKE, 0, 1, 1]]])
def test_nothing_known_is_refused(world, tmp_path, shown):
    path = write_training_set(tmp_path / "day.parquet", [Row(u, shown=shown) for u in range(30)])
    with pytest.raises(ValueError, match="nothing to learn"):
        _train(world, tmp_path / "a", training_sets=[path])


def test_a_source_whose_held_out_users_are_absent_is_trained(world, tmp_path):
    """A handful of users may all fall on the training side: then there is no AUC, and no crash."""
    path = write_training_set(tmp_path / "day.parquet", [Row(1, shown=[[3, LIKE, 255, 1, 1]])])
    metrics = _train(world, tmp_path / "a", training_sets=[path])
    assert metrics["rows"] == 1
    assert {m["auc"] for m in metrics["objectives"].values()} == {None}
