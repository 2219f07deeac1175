"""ECPO at the worked ratios of its definition: value and gradient; advantages of groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.training.ecpo import ecpo_objective, group_advantage

# (advantage, pi / pi_old, value, coefficient of grad log pi), epsilon 0.2 and delta 0.1.
TABLE = [
    (1.0, 0.5, 0.5, 0.5),
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 1.19, 1.19, 1.19),
    (1.0, 1.2001, 1.2, 0.0),
    (1.0, 1.3, 1.2, 0.0),
    (1.0, 1.5, 1.2, 0.0),
    (1.0, 50.0, 1.2, 0.0),
    (-1.0, 0.5, -0.8, 0.0),
    (-1.0, 0.79, -0.8, 0.0),
    (-1.0, 1.0, -1.0, -1.0),
    (-1.0, 1.2, -1.2, -1.2),
    (-1.0, 1.3, -1.3, -1.3),
    (-1.0, 1.5, -1.3, -1.3),
    (-1.0, 50.0, -1.3, -1.3),
    (-1.0, 1e12, -1.3, -1.3),
    (-2.5, 50.0, -3.25, -3.25),
    (0.0, 50.0, 0.0, 0.0),
    (0.0, 0.5, 0.0, 0.0),
]


@pytest.mark.parametrize("advantage, ratio, value, gradient", TABLE)
@pytest.mark.parametrize("logp_old", [-0.5, -30.0])
def test_value_and_gradient_at_the_worked_ratios(advantage, ratio, value, gradient, logp_old):
    logp = torch.tensor([logp_old + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([logp_old], dtype=torch.float64)
    objective = ecpo_objective(logp, old, torch.tensor([advantage], dtype=torch.float64))
    objective.sum().backward()
    assert objective.item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert logp.grad.item() == pytest.approx(gradient, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("epsilon, delta", [(0.1, 0.05), (0.3, 0.0)])
def test_the_bound_is_one_plus_epsilon_plus_delta(epsilon, delta):
    logp = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.tensor([-9.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    objective = ecpo_objective(logp, old, advantage, epsilon, delta)
    objective.sum().backward()
    assert objective.item() == pytest.approx(-(1 + epsilon + delta))
    assert logp.grad.item() == pytest.approx(-(1 + epsilon + delta))


def test_elements_are_independent_and_old_probabilities_get_no_gradient():
    logp = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    old, advantage = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    whole = ecpo_objective(logp, old, advantage)
    assert whole.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            one = ecpo_objective(logp[i, j], old[i, j], advantage[i, j])
            assert one.item() == pytest.approx(whole[i, j].item())


def test_group_advantage_is_the_standardised_reward_of_each_group():
    reward = torch.rand(5, 8, dtype=torch.float64)
    valid = torch.ones(5, 8, dtype=torch.bool)
    x = reward.numpy()
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(group_advantage(reward, valid).numpy(), expected, rtol=1e-9)


def test_invalid_samples_neither_get_an_advantage_nor_count_in_the_mean():
    reward = torch.tensor([[1.0, 2.0, 3.0, 1e6]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False]])
    expected = group_advantage(reward[:, :3], valid[:, :3])[0].tolist()
    assert group_advantage(reward, valid)[0].tolist() == [*expected, 0.0]
    assert group_advantage(torch.tensor([[float("nan"), 1.0, 3.0]]), torch.tensor([[False, True, True]]))[
        0
    ].tolist() == [0, -1, 1]


@pytest.mark.parametrize("valid", [[True] * 3, [True, False, False], [False] * 3])
def test_equal_rewards_or_too_few_samples_give_zero(valid):
    advantage = group_advantage(torch.full((1, 3), 0.3), torch.tensor([valid]))
    assert advantage[0].tolist() == [0.0, 0.0, 0.0]
