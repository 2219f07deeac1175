"""Policy objectives against naive float64 references: values, gradients, and the ratios where they part."""

from __future__ import annotations

import math

import pytest
import torch

from models.training.ecpo import ecpo_objective
from models.training.objectives import OBJECTIVES, ObjectiveConfig, make_objective

DOUBLE = torch.float64


def cases(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logp (with gradient), logp_old, logp_reference and advantage, [3, 6]."""
    g = torch.Generator().manual_seed(seed)
    logp, old, reference = (-3 * torch.rand(3, 6, generator=g, dtype=DOUBLE) - 0.1 for _ in range(3))
    return logp.requires_grad_(), old, reference, torch.randn(3, 6, generator=g, dtype=DOUBLE)


def naive_grpo(p: float, old: float, reference: float, a: float, beta: float) -> float:
    rho = math.exp(p - old)
    clipped = min(max(rho, 0.8), 1.2)
    r = math.exp(reference - p)
    return min(rho * a, clipped * a) - beta * (r - math.log(r) - 1)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_grpo_is_the_clipped_plain_ratio_less_the_kl_term(beta):
    logp, old, reference, advantage = cases()
    value = make_objective(ObjectiveConfig(name="grpo", kl_beta=beta), reference)(logp, old, advantage)
    for i in range(3):
        for j in range(6):
            expected = naive_grpo(
                logp[i, j].item(), old[i, j].item(), reference[i, j].item(), advantage[i, j].item(), beta
            )
            assert value[i, j].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ratio, grpo, ecpo", [(1.5, -1.5, -1.3), (50.0, -50.0, -1.3)])
def test_grpo_explodes_where_ecpo_does_not(ratio, grpo, ecpo):
    """Section 2.4.1's reason for ECPO: a negative advantage at a large ratio."""
    for name, expected in (("grpo", grpo), ("ecpo", ecpo)):
        logp = torch.tensor([[math.log(ratio)]], dtype=DOUBLE, requires_grad=True)
        value = make_objective(ObjectiveConfig(name=name))(
            logp, torch.zeros(1, 1, dtype=DOUBLE), -torch.ones(1, 1, dtype=DOUBLE)
        )
        value.sum().backward()
        assert value.item() == pytest.approx(expected) and logp.grad.item() == pytest.approx(expected)


def test_ecpo_takes_its_constants_from_the_configuration():
    logp, old, _, advantage = cases()
    value = make_objective(ObjectiveConfig(epsilon=0.1, delta=0.5))(logp, old, advantage)
    torch.testing.assert_close(value, ecpo_objective(logp, old, advantage, 0.1, 0.5))


def test_gbpo_raises_the_denominator():
    logp, old, _, advantage = cases()
    value = make_objective(ObjectiveConfig(name="gbpo"))(logp, old, advantage)
    value.sum().backward()
    for i in range(3):
        for j in range(6):
            pi, pi_old, a = math.exp(logp[i, j].item()), math.exp(old[i, j].item()), advantage[i, j].item()
            floor = max(pi_old, pi) if a >= 0 else max(pi_old, 1 - pi)
            assert value[i, j].item() == pytest.approx(pi / floor * a, rel=1e-9)
            assert logp.grad[i, j].item() == pytest.approx(pi / floor * a, rel=1e-9)  # the floor has no gradient


def test_gbpo_bounds_the_gradient_of_improbable_negatives():
    """At ratio 1 ECPO's coefficient on grad log pi is -1 however small pi is; GBPO's goes to zero with pi."""
    logp = torch.full((1, 1), -20.0, dtype=DOUBLE, requires_grad=True)
    value = make_objective(ObjectiveConfig(name="gbpo"))(logp, logp.detach(), -torch.ones(1, 1, dtype=DOUBLE))
    value.sum().backward()
    assert logp.grad.item() == pytest.approx(-math.exp(-20.0), rel=1e-6)


def test_gbpo_is_finite_for_a_certain_item():
    logp = torch.zeros(1, 2, requires_grad=True)
    value = make_objective(ObjectiveConfig(name="gbpo"))(logp, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logp.grad).all()


def test_dpo_compares_the_best_with_the_worst():
    logp, old, _, advantage = cases()
    value = make_objective(ObjectiveConfig(name="dpo", dpo_beta=0.7))(logp, old, advantage)
    value.mean().backward()
    pairs = []
    for i in range(3):
        a = advantage[i].tolist()
        best, worst = a.index(max(a)), a.index(min(a))
        x = 0.7 * ((logp[i, best] - old[i, best]) - (logp[i, worst] - old[i, worst])).item()
        pairs.append(-math.log1p(math.exp(-x)))
        slope = 0.7 / (1 + math.exp(x)) / 3  # of the mean over users
        assert logp.grad[i, best].item() == pytest.approx(slope) and logp.grad[i, worst].item() == pytest.approx(-slope)
        others = [j for j in range(6) if j not in (best, worst)]
        assert logp.grad[i, others].tolist() == [0.0] * 4
    assert value.mean().item() == pytest.approx(sum(pairs) / 3)


def test_a_group_without_a_difference_gives_nothing():
    logp = torch.randn(1, 4, requires_grad=True)
    for name in OBJECTIVES:
        value = make_objective(ObjectiveConfig(name=name))(logp, torch.randn(1, 4), torch.zeros(1, 4))
        assert value.tolist() == [[0.0] * 4], name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "ppo"}, "objective is 'ppo'"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"delta": -0.1}, "delta is -0.1"),
        ({"dpo_beta": 0.0}, "dpo_beta is 0.0"),
        ({"kl_beta": 0.1}, "only grpo has a KL term"),
        ({"name": "grpo", "kl_beta": float("nan")}, "kl_beta is nan"),
    ],
)
def test_wrong_constants_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**changes)


def test_a_kl_term_needs_its_reference():
    with pytest.raises(ValueError, match="reference"):
        make_objective(ObjectiveConfig(name="grpo", kl_beta=0.1))
