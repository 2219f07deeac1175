"""The daily reward step on a tiny source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.onerec.features import LABELS
from models.reward.measure import calibrate, impressions, intercept, predict
from models.reward.pscore import PScore
from models.reward.train import EPOCHS, MAX_EPOCHS, fold_of, labelled, new_model, passes, set_categories, train_reward
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
    assert all(set(metrics[k]) == set(LABELS) for k in ("objectives", "p_score", "hand_sum", "p_score_auc", "weights"))
    like = metrics["objectives"]["like"]
    assert like["auc"] > 0.6 < metrics["p_score_auc"]["like"] == metrics["p_score"]["like"]["auc"]
    for score in (like, metrics["p_score"]["like"], metrics["hand_sum"]["like"]):
        for key in ("auc", "gauc"):
            low, high = score[f"{key}_interval"]
            assert 0 <= low <= score[key] <= high <= 1
    assert like["ece"] < 0.25 and 0.6 < like["predicted_over_observed"] < 1.6
    assert metrics["objectives"]["follow"] == {
        "auc": None, "auc_interval": None, "gauc": None, "gauc_interval": None,
        "ece": pytest.approx(0, abs=0.05), "predicted_over_observed": None, "positives": 0, "rows": like["rows"],
    }  # fmt: skip
    assert 0 < like["positives"] < like["rows"]
    assert 0 < metrics["objectives"]["hate"]["positives"] < 0.3 * like["rows"]  # counts the hated, not the rest
    assert metrics["objectives"]["follow"]["auc"] is None  # nobody follows in this source
    folds = fold_of(np.arange(400))
    assert metrics["rows"] == 2 * (folds >= 15).sum() and like["rows"] == 2 * (folds < 10).sum() * 8
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == metrics
    _train(world, tmp_path / "b", training_sets=plenty)
    for name in ("reward.safetensors", "config.json", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_daily_step_takes_categories_from_the_items_or_else_from_the_events(world, tmp_path):
    tokenizer = Tokenizer.load(world.tokenizer)
    data = labelled(world.training, tokenizer)
    by_events, by_items = new_model(data, tokenizer), new_model(data, tokenizer)
    set_categories(by_events, data, tokenizer, None)
    set_categories(by_items, data, tokenizer, world.items)
    events, items = by_events.item_category_N.numpy(), by_items.item_category_N.numpy()
    assert events[-1] == items[-1] == 0
    ids = tokenizer.catalogue.item_ids
    for at, item in enumerate(ids):
        assert items[at] == (0 if item % 7 == 3 else 1 + item % 4)  # one item in seven has no tag
    for table in (events[:-1], items[:-1]):  # events say the topic of every item that was ever shown
        for topic in range(4):
            assert len(set(table[(ids % 4 == topic) & (table > 0)])) == 1
    assert len(set(events[:-1])) >= 4
    out = tmp_path / "a"
    _train(world, out, items=world.items)
    assert np.array_equal(PScore.load(out, tokenizer).item_category_N.numpy(), items)


def test_calibration_moves_the_towers_to_what_other_users_do(world, plenty):
    tokenizer = Tokenizer.load(world.tokenizer)
    data = labelled(plenty, tokenizer)
    model, rows = new_model(data, tokenizer), np.arange(len(data))
    with torch.no_grad():
        model.tower_bias_O += 3
    before = predict(model, data, rows)
    calibrate(model, data, rows)
    after = predict(model, data, rows)
    like = LABELS.index("like")
    assert after.y[:, like].mean() == pytest.approx((1 / (1 + np.exp(-after.towers[:, like]))).mean(), rel=0.01)
    shift = after.towers - before.towers
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-4)


def test_an_intercept_by_few_labels_stays_near_nothing():
    assert intercept(np.empty(0), np.empty(0)) == 0
    rng = np.random.default_rng(0)
    many = intercept(np.full(10_000, -3.0), (rng.random(10_000) < 0.2).astype(float))
    assert many == pytest.approx(3 + np.log(0.2 / 0.8), abs=0.08)
    assert 0 < intercept(np.full(5, -3.0), np.array([1.0, 0, 0, 0, 0])) < 1.1 < many


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


def test_bootstrap_passes_over_a_small_log_more_often():
    assert passes(128 * 1000) == EPOCHS  # a thousand batches are enough
    assert passes(128 * 50) == 6  # fifty are not: six passes make 300 steps
    assert passes(10) == MAX_EPOCHS and passes(0) == EPOCHS
