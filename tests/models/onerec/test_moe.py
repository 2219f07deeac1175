"""The grouped mixture of experts against a loop over tokens in float64, its gradients, and loss-free balancing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.onerec.moe import MoE

D, E, FF, N = 12, 6, 8, 40  # widths: multiples of 16 bytes, as grouped products want


def _moe(k: int = 2) -> MoE:
    moe = MoE(D, experts=E, experts_per_token=k, expert_dim=FF, balance_rate=0.01)
    with torch.no_grad():
        moe.bias_E.copy_(torch.randn(E) * 0.3)
    return moe


def _naive(weights: dict[str, torch.Tensor], x_ND: torch.Tensor, bias_E: torch.Tensor, k: int) -> torch.Tensor:
    """Token by token: the k best of affinity + bias, weighted by the affinities alone."""
    out = []
    for x in x_ND:
        affinity = torch.sigmoid(weights["router.weight"] @ x)
        chosen = torch.argsort(affinity.detach() + bias_E, descending=True)[:k].tolist()
        y = torch.zeros_like(x)
        for e in chosen:
            hidden = F.silu(x @ weights["gate_EDF"][e]) * (x @ weights["up_EDF"][e])
            y = y + affinity[e] / affinity[chosen].sum() * (hidden @ weights["down_EFD"][e])
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("k", [1, 2, E])
def test_output_and_gradients_equal_the_loop(k):
    moe, x = _moe(k), torch.randn(N, D)
    seed = torch.randn(N, D)
    ours = x.clone().requires_grad_()
    y = moe(ours)
    (y * seed).sum().backward()
    exact = {name: p.detach().double().requires_grad_() for name, p in moe.named_parameters()}
    reference = x.double().requires_grad_()
    expected = _naive(exact, reference, moe.bias_E.double(), k)
    (expected * seed.double()).sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-3, atol=1e-4)
    for name, p in moe.named_parameters():
        torch.testing.assert_close(p.grad.double(), exact[name].grad, rtol=1e-3, atol=1e-4, msg=name)


def test_shape_is_kept_and_an_idle_expert_is_no_problem():
    moe = _moe()
    with torch.no_grad():
        moe.bias_E.copy_(torch.tensor([9.0, 9.0, 0, 0, 0, 0]))  # all tokens go to two experts
    x = torch.randn(2, 3, 5, D)
    assert moe(x).shape == x.shape
    torch.testing.assert_close(moe(x)[1, 2], moe(x[1, 2]), rtol=1e-5, atol=1e-6)
    assert moe.load_E.tolist()[2:] == [0, 0, 0, 0]


def test_bias_changes_who_is_chosen_but_never_the_weights():
    moe, x = _moe(k=E).eval(), torch.randn(N, D)  # all are chosen: only weights could differ
    with torch.no_grad():
        before = moe(x)
        moe.bias_E.copy_(torch.randn(E) * 5)
        torch.testing.assert_close(moe(x), before, rtol=1e-5, atol=1e-6)
        moe.k = 2
        chosen = moe(x)
        moe.bias_E.neg_()
        assert not torch.allclose(moe(x), chosen)


def test_bias_gets_no_gradient_and_is_saved_while_load_is_not():
    moe = _moe()
    moe(torch.randn(N, D)).sum().backward()
    assert not moe.bias_E.requires_grad and moe.bias_E.grad is None
    assert "bias_E" in moe.state_dict() and "load_E" not in moe.state_dict()


def test_load_counts_training_tokens_only_and_balance_moves_the_bias_by_its_sign():
    moe = _moe().train()
    moe(torch.randn(N, D))
    moe(torch.randn(N, D))
    assert moe.load_E.sum() == 2 * N * 2
    moe.eval()(torch.randn(N, D))
    assert moe.load_E.sum() == 2 * N * 2
    moe.load_E.copy_(torch.tensor([0.0, 10, 4, 4, 4, 2]))  # mean 4
    before = moe.bias_E.clone()
    moe.balance()
    torch.testing.assert_close(moe.bias_E - before, 0.01 * torch.tensor([1.0, -1, 0, 0, 0, 1]))
    assert moe.load_E.sum() == 0


def test_balancing_evens_out_the_load():
    moe, x = _moe().train(), torch.randn(400, D) + 1
    with torch.no_grad():
        moe.router.weight.normal_(std=0.5)

    def spread() -> float:
        moe.load_E.zero_()
        moe(x)
        return float(moe.load_E.std() / moe.load_E.mean())

    first = spread()
    for _ in range(150):
        moe.load_E.zero_()
        moe(x)
        moe.balance()
    assert spread() < 0.3 < first
