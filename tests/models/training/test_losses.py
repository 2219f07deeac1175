"""Losses against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.onerec.moe import MoE
from models.training.losses import PretrainLoss, balance_loss, event_loss, item_loss, ntp_loss
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


def test_parts_of_a_batch_add_up_to_the_whole(encoded):
    """Micro-batches and processes divide by the number of targets of the whole step."""
    model, _, z, mask = encoded
    total = (WEIGHT > 0).sum()
    for loss in (
        lambda rows, n: ntp_loss(model, TARGETS[rows], WEIGHT[rows], z[rows], mask[rows], n)[0],
        lambda rows, n: item_loss(model, TARGETS[rows], WEIGHT[rows], z[rows], n),
    ):
        parts = loss(slice(0, 1), total) + loss(slice(1, 3), total)
        assert parts.item() == pytest.approx(loss(slice(0, 3), None).item(), rel=1e-5)


def _events(model, z: torch.Tensor, batch: dict[str, torch.Tensor], pairs: list[tuple[int, int]]) -> float:
    """Cross-entropy of these (user, event) against the next event's item, in float64, each by its row's weight."""
    p = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    codes = model.sid_NL[:-1].numpy()
    table = sum(p[f"code.{i}.weight"][codes[:, i]] for i in range(3)) + p["item_residual.weight"][:-1]
    total = 0.0
    for user, t in pairs:
        x = z[user, 1 + t].detach().double().numpy()  # behind the static position
        for name in ("event_query", "item_query"):
            x = p[f"{name}.weight"] @ x + p[f"{name}.bias"]
        logp = _log_softmax(table @ x + p["item_bias_N"])
        total -= float(batch["weight"][user]) * logp[int(batch["short"][user, t + 1, 0])]
    return total


# User 0 has five events and the third's item is unknown, user 1 the newest two, user 2 none.
PAIRS = [(0, 0), (0, 2), (0, 3), (1, 3)]


@pytest.fixture
def events():
    model, _ = small_model(event_head=True)
    batch = random_batch(model, LENGTHS) | {"weight": torch.tensor([0.5, 2.0, 1.0])}
    batch["short"][..., 0].clamp_(max=19)
    batch["short"][0, 2, 0] = 20
    return model, batch, model.encode(batch)[0]


def test_event_loss_is_the_next_items_cross_entropy_by_the_rows_weight(events):
    model, batch, z = events
    value = event_loss(model, batch, z, torch.tensor(7))
    assert value.item() == pytest.approx(_events(model, z, batch, PAIRS) / 7, rel=1e-5) and value.requires_grad
    full = random_batch(model, [(5, 6, 7)] * 2)
    full["short"][..., 0].clamp_(max=19)
    bare = {k: v for k, v in full.items() if not k.endswith("_mask")} | {"weight": torch.tensor([1.0, 3.0])}
    z, _ = model.encode(bare)
    every = [(user, t) for user in range(2) for t in range(4)]
    assert event_loss(model, bare, z, torch.tensor(7)).item() == pytest.approx(_events(model, z, bare, every) / 7)


def test_neither_padding_nor_an_unknown_next_item_counts(events, monkeypatch):
    """Nor does it where such pairs are computed, as a compiled step does."""
    model, batch, z = events

    def gradients(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        loss = event_loss(model, batch, z, torch.tensor(7))
        loss.backward(retain_graph=True)
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    reference = gradients(batch)
    other = {**batch, "short": torch.where(batch["short_mask"][..., None], batch["short"], 7)}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for changed in (batch, other):
        for a, b in zip(gradients(changed), reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_a_history_without_a_pair_of_events_has_no_event_loss(length):
    model, _ = small_model(event_head=True)
    batch = random_batch(model, [(length, 2, 3)] * 2) | {"weight": torch.ones(2)}
    value = event_loss(model, batch, model.encode(batch)[0], torch.tensor(0))
    value.backward()
    assert value.item() == 0
    assert (
        not model.event_query.weight.grad.any()
    )  # a gradient all the same: processes that share the model wait for it


def test_the_event_loss_joins_pretraining_by_its_weight(events):
    model, batch, z = events
    batch = batch | {"targets": TARGETS, "target_mask": WEIGHT > 0}
    total = (WEIGHT > 0).sum()
    plain, value = (PretrainLoss(model, 1.0, event_weight=w)(batch, total)[0].item() for w in (0.0, 0.5))
    assert value - plain == pytest.approx(0.5 * _events(model, z, batch, PAIRS) / int(total), rel=1e-4)
    without, _ = small_model()
    values = [PretrainLoss(without, 1.0, event_weight=w)(batch, total)[0].item() for w in (0.0, 0.5)]
    assert values[0] == values[1]


def test_balance_loss_is_one_when_even_and_pushes_the_busy_expert_down():
    torch.manual_seed(0)
    moe = MoE(8, experts=4, experts_per_token=2, expert_dim=8, balance_rate=0.0)
    x = torch.randn(512, 8)
    with torch.no_grad():
        moe.router.weight.zero_()
    assert balance_loss(moe, x).item() == pytest.approx(1.0)
    with torch.no_grad():
        moe.router.weight.normal_(std=0.1)
        moe.router.weight[2] += 0.5
    x = x.abs()  # so that expert 2 is always wanted
    affinity = torch.sigmoid(x.double() @ moe.router.weight.double().T)
    share = torch.zeros(4, dtype=torch.float64)
    for row in affinity:
        share[row.topk(2).indices] += 1 / (2 * len(x))
    expected = 4 * (share * (affinity / affinity.sum(-1, keepdim=True)).mean(0)).sum()
    value = balance_loss(moe, x)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5) and value.item() > 1.05
    value.backward()
    gradient = (moe.router.weight.grad * x.mean(0)).sum(-1)
    assert gradient.argmax() == 2


def test_the_auxiliary_loss_joins_pretraining_once_a_step():
    model, _ = small_model()
    batch = random_batch(model, LENGTHS) | {"targets": TARGETS, "target_mask": WEIGHT > 0, "weight": torch.ones(3)}
    total = (WEIGHT > 0).sum()
    plain, with_it = PretrainLoss(model, 1.0), PretrainLoss(model, 1.0, balance_weight=0.5)
    base = plain(batch, total)[0].item()
    layers = sum(isinstance(m, MoE) for m in model.modules())
    values = [with_it(batch, total)[0].item() for _ in range(2)]
    assert values[0] == values[1] and 0.5 * layers * 0.9 < values[0] - base < 0.5 * layers * 2


def test_what_was_shown_and_not_liked_is_a_lighter_target_of_the_item_head_alone():
    model, _ = small_model()
    weight = torch.tensor([1.0, 0.5, 2.0])
    batch = random_batch(model, LENGTHS) | {"targets": TARGETS, "target_mask": WEIGHT > 0, "weight": weight}
    others = {
        "others": torch.tensor([[5, 6], [0, 7], [0, 0]]),
        "other_mask": torch.tensor([[True, True], [False, True], [False, False]]),
    }
    total = (WEIGHT > 0).sum()
    plain, _ = PretrainLoss(model, 2.0)(batch | others, total)
    value, _ = PretrainLoss(model, 2.0, shown_weight=0.3)(batch | others, total)
    logp = torch.log_softmax(model.item_logits(model.encode(batch)[0]), -1)
    expected = -2.0 * 0.3 * (logp[0, 5] + logp[0, 6] + 0.5 * logp[1, 7]) / total
    assert (value - plain).item() == pytest.approx(expected.item(), rel=1e-4)
