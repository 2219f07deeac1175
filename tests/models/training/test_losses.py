"""Losses against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.training.losses import item_loss, ntp_loss
from tests.models.conftest import random_batch, small_model

LENGTHS = [(5, 6, 7), (2, 0, 3), (0, 0, 0)]
TARGETS = torch.tensor([[4, 9, 1], [0, 3, 3], [19, 0, 0]])
WEIGHT = torch.tensor([[1.0, 1.0, 1.0], [0.25, 0.0, 0.0], [0.5, 0.5, 0.0]])


@pytest.fixture
def encoded():
    model, tokenizer = small_model()
    z, mask = model.encode(random_batch(model, LENGTHS))
    return model, tokenizer, z, mask


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def test_ntp_is_the_sum_over_levels_and_the_weighted_mean_over_targets(encoded):
    model, tokenizer, z, mask = encoded
    expected, plain = 0.0, np.zeros(3)
    for user in range(3):
        for m in range(3):
            codes = torch.from_numpy(tokenizer.sid_NL[TARGETS[user, m]])[None, None]
            levels = model.code_logits(codes, z[user : user + 1], mask[user : user + 1])
            for level, logits in enumerate(levels):
                logp = _log_softmax(logits[0, 0].detach().double().numpy())
                expected -= float(WEIGHT[user, m]) * logp[int(codes[0, 0, level])]
                plain[level] -= float(WEIGHT[user, m] > 0) * logp[int(codes[0, 0, level])]
    count = float((WEIGHT > 0).sum())
    loss, levels = ntp_loss(model, TARGETS, WEIGHT, z, mask)
    np.testing.assert_allclose(levels.numpy(), plain / count, rtol=1e-4)
    assert loss.item() == pytest.approx(expected / count, rel=1e-4)
    assert loss.requires_grad and not levels.requires_grad


def test_item_loss_is_full_softmax_cross_entropy(encoded):
    model, _, z, _ = encoded
    logits = model.item_logits(z).detach().double().numpy()
    expected = 0.0
    for user in range(3):
        logp = _log_softmax(logits[user])
        expected -= sum(float(WEIGHT[user, m]) * logp[TARGETS[user, m]] for m in range(3))
    assert item_loss(model, TARGETS, WEIGHT, z).item() == pytest.approx(expected / float((WEIGHT > 0).sum()), rel=1e-4)


def test_a_lighter_batch_counts_for_less(encoded):
    """Rows of one day have one weight: were the mean over weights, recency would cancel in a batch of one day."""
    model, _, z, mask = encoded
    for loss in (lambda w: ntp_loss(model, TARGETS, w, z, mask)[0], lambda w: item_loss(model, TARGETS, w, z)):
        assert loss(WEIGHT * 0.5).item() == pytest.approx(0.5 * loss(WEIGHT).item(), rel=1e-5)


def test_padding_targets_change_neither_loss_nor_gradient(encoded):
    model, _, z, mask = encoded
    other = torch.where(WEIGHT > 0, TARGETS, 7)
    assert not torch.equal(other, TARGETS)

    def gradients(targets: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        loss = ntp_loss(model, targets, WEIGHT, z, mask)[0] + item_loss(model, targets, WEIGHT, z)
        loss.backward(retain_graph=True)
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    for a, b in zip(gradients(TARGETS), gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_target_at_all_is_zero_and_finite(encoded):
    model, _, z, mask = encoded
    assert ntp_loss(model, TARGETS, WEIGHT * 0, z, mask)[0].item() == 0
    assert item_loss(model, TARGETS, WEIGHT * 0, z).item() == 0
