"""The probe and its verdict, and the watch on gradients, ratios and entropy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.onerec.ranking import rank_items
from models.reward.reward import RewardInput
from models.training.data import TrainingSet
from models.training.safety import Measured, Probe, Watch, harm, ratio_health
from tests.models.conftest import LIKE, Row, small_model, write_training_set


def by_item(generated: RewardInput) -> torch.Tensor:
    """A reward that a test can predict."""
    return generated.item_BG.float() / 10


@pytest.fixture
def probe(tmp_path) -> tuple[Probe, object]:
    model, tok = small_model(items=20)
    rows = [Row(u, shown=[[10 * (u % 20), LIKE, 255, 5, 9], [10 * ((u + 3) % 20), LIKE, 255, 5, 9]]) for u in range(9)]
    data = TrainingSet([write_training_set(tmp_path / "d.parquet", rows)], tok.catalogue, model.config)
    return Probe(data=data, rows=np.arange(9), reward=by_item, trie=tok.trie, k=5, seed=0), model


def test_measure_equals_a_naive_count(probe):
    probe, model = probe
    found = probe.measure(model)
    rewards, recalls = [], []
    for row in range(9):
        item, _, _ = rank_items(model, probe.data.context(np.array([row])), probe.trie, 10)
        rewards += (item[0, :10].double() / 10).tolist()
        wanted = set(probe.data.targets.row(row).tolist())
        recalls.append(len(wanted & set(item[0, :5].tolist())) / len(wanted))
    assert found.reward == pytest.approx(np.mean(rewards), rel=1e-5)
    assert found.recall_probe == pytest.approx(np.mean(recalls))
    assert found.top_items.shape == (9, 10) and 0 <= found.legality <= 1
    assert probe.measure(model).numbers() == found.numbers()


def test_a_place_without_an_item_has_no_reward(probe):
    """Only the items under one first code can be spelled: the mean reward is theirs."""
    probe, model = probe
    first = model.sid_NL[:-1, 0]
    code = int(torch.bincount(first).argmax())
    with torch.no_grad():
        model.code_bias_LK[0, torch.arange(4) != code] = float("-inf")
    possible = torch.nonzero(first == code)[:, 0]
    assert len(possible) < 10
    found = probe.measure(model)
    assert found.reward == pytest.approx(possible.float().mean().item() / 10, rel=1e-5)
    assert (found.top_items >= 0).sum(1).tolist() == [len(possible)] * 9


def test_measuring_leaves_the_mode_as_it_was(probe):
    probe, model = probe
    probe.measure(model.train())
    assert model.training
    probe.measure(model.eval())
    assert not model.training


BEFORE = Measured(reward=0.2, recall_probe=0.30, legality=0.9, top_items=torch.zeros(1, 10))


@pytest.mark.parametrize("recall, hurts", [(0.30, False), (0.2911, False), (0.2909, True)])
def test_the_limit_is_relative(recall, hurts):
    reason = harm(BEFORE, dataclasses.replace(BEFORE, recall_probe=recall, reward=0.25), 0.03)
    assert (reason is not None) == hurts
    if hurts:
        assert "fell from 0.3000 to 0.2909, limit 0.2910, while the reward rose (0.2000 -> 0.2500)" in reason


def test_the_reason_says_when_the_reward_did_not_rise():
    assert "and the reward did not rise" in harm(BEFORE, dataclasses.replace(BEFORE, recall_probe=0.1), 0.03)


def test_a_spike_is_five_times_the_recent_median():
    watch = Watch()
    assert not any(watch.step(1.0 + 0.01 * i, 1.0, 5.0) for i in range(20))
    assert not watch.step(5.0, 2.0, 5.0)
    assert watch.step(6.0, 7.0, 1.0)
    assert watch.summary() == {
        "grad_spikes": 1,
        "grad_norm_max": 6.0,
        "ratio_max": 7.0,
        "entropy_first": 5.0,
        "entropy_last": pytest.approx((3 * 5.0 + 1.0) / 4),
    }


def test_ratios_count_only_samples_with_an_advantage():
    old = torch.zeros(2, 3, dtype=torch.float64)
    logp = torch.log(torch.tensor([[1.0, 1.5, 9.0], [0.5, 1.1, 1.0]], dtype=torch.float64))
    advantage = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])
    assert ratio_health(logp, old, advantage, 0.2) == {"ratio_max": pytest.approx(1.5), "clipped": 0.5}
    assert ratio_health(logp, old, torch.zeros(2, 3), 0.2) == {"ratio_max": 1.0, "clipped": 0.0}
