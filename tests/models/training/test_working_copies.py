"""Working copies and their AdamW against PyTorch's AdamW on the parameters themselves."""

from __future__ import annotations

import torch
from torch import nn

from models.training.working_copies import WorkingCopies


def _made() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 3))
    weights = [p for p in module.parameters() if p.ndim == 2]
    biases = [p for p in module.parameters() if p.ndim == 1]
    groups = [
        {"params": weights, "lr": 1e-2, "weight_decay": 0.05},
        {"params": biases, "lr": 1e-3, "weight_decay": 0.0},
    ]
    return module, torch.optim.AdamW(groups, betas=(0.9, 0.95))


def test_in_float32_they_are_the_parameters():
    """Five clipped steps; the masters, moments and steps of both agree."""
    (theirs, optimizer), (ours, own) = _made(), _made()
    working = WorkingCopies(ours, own, torch.float32)
    for step in range(5):
        x = 5 * torch.randn(16, 4)
        theirs(x).square().mean().backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        working(x).square().mean().backward()
        torch.testing.assert_close(working.norm(), expected, rtol=1e-5, atol=1e-6)
        assert expected > 1  # or clipping would not be seen
        working.step(1.0)
        for p, q in zip(theirs.parameters(), ours.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(optimizer.state[p][moment], own.state[q][moment], rtol=1e-4, atol=1e-7)
            assert own.state[q]["step"].item() == step + 1
    assert all(torch.equal(c, p) for c, p in zip(working.parameters.values(), ours.parameters()))


def test_in_bfloat16_the_masters_keep_what_the_copies_round_away():
    module, optimizer = _made()
    working = WorkingCopies(module, optimizer, torch.bfloat16)
    for _ in range(3):
        working(torch.randn(16, 4).bfloat16()).square().mean().backward()
        working.step(1.0)
    for copy, master in zip(working.parameters.values(), module.parameters()):
        assert copy.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(copy, master.bfloat16()) and not torch.equal(copy.float(), master)


def test_they_go_on_from_a_restored_optimiser():
    """Bias correction follows the steps that were taken before the copies were made."""
    (once, first), (twice, second) = _made(), _made()
    data = [torch.randn(16, 4) for _ in range(4)]
    whole = WorkingCopies(once, first, torch.float32)
    for x in data:
        whole(x).square().mean().backward()
        whole.step(1.0)
    for half in (data[:2], data[2:]):
        part = WorkingCopies(twice, second, torch.float32)
        for x in half:
            part(x).square().mean().backward()
            part.step(1.0)
    assert all(torch.equal(p, q) for p, q in zip(once.parameters(), twice.parameters()))
