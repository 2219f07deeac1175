"""Targets, class weights and the loss, against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.onerec.features import LABELS
from models.reward.losses import MOST_WEIGHT, WEIGHTS, ClassWeights, p_score_loss, targets_of
from models.reward.pscore import Outputs

HATE, O = LABELS.index("hate"), len(LABELS)
PLAIN = ClassWeights(torch.ones(O), torch.ones(O), torch.ones(O))


def test_targets_are_the_bits_with_hate_inverted_and_unknown_masked():
    label = torch.tensor([[0, 0b1, 1 << HATE, 255]])
    known = torch.tensor([[255, 0b11, 255 - (1 << HATE), 0]])
    y, available = targets_of(label, known)
    for m in range(4):
        for o in range(O):
            bit = bool(int(label[0, m]) >> o & 1)
            assert y[0, m, o] == float(bit != (o == HATE))
            assert available[0, m, o] == float(int(known[0, m]) >> o & 1)


def test_every_objective_has_a_positive_weight():
    assert set(WEIGHTS) == set(LABELS) and min(WEIGHTS.values()) > 0


def test_class_weights_by_hand():
    y, known = torch.zeros(100, O), torch.ones(100, O)
    y[:4, 0] = 1  # 4 of 100: odds 24
    y[:, 1] = 1
    y[0, 1] = 0  # 1 of 100 is 0, as for hate: the negatives are the rare ones
    y[:50, 2] = 1
    known[50:, 4], y[0, 4] = 0, 1  # 1 of 50 known
    known[:, 5] = 0  # nobody logs it
    c = ClassWeights.of(y, known, balance=0.5)
    assert c.positive_O[:3].tolist() == pytest.approx([24**0.5, 1, 1])
    assert c.negative_O[:3].tolist() == pytest.approx([1, 99**0.5, 1])
    assert c.positive_O[4].item() == pytest.approx(7)
    assert c.mean_O[0].item() == pytest.approx((4 * 24**0.5 + 96) / 100)
    for absent in (3, 5):  # one class, or none: nothing to weigh
        assert (c.positive_O[absent], c.negative_O[absent], c.mean_O[absent], c.shift_O[absent]) == (1, 1, 1, 0)
    assert ClassWeights.of(y, known, balance=4.0).positive_O.max() == MOST_WEIGHT
    assert c.shift_O[:2].tolist() == pytest.approx([np.log(24) / 2, -np.log(99) / 2])


@pytest.mark.parametrize("balanced", [False, True])
def test_loss_equals_a_loop_in_float64(balanced):
    B, M = 3, 4
    towers, score = torch.randn(B, M, O, dtype=torch.float64), torch.randn(B, M, dtype=torch.float64)
    y, known = (torch.randint(2, (B, M, O)).double() for _ in range(2))
    known[..., 2] = 0  # an objective that nobody logs
    g = torch.Generator().manual_seed(3)
    one, two = (ClassWeights(*(1 + torch.rand(O, generator=g).double() for _ in range(3))) for _ in range(2))
    tower, one_score = (one, two) if balanced else (PLAIN, PLAIN)

    def bce(logit: float, target: float) -> float:
        p = 1 / (1 + np.exp(-logit))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))

    expected = 0.0
    for o, name in enumerate(LABELS):
        cells = [(b, m) for b in range(B) for m in range(M) if known[b, m, o]]
        if not cells:
            continue
        rows, shift = {}, 0.0
        for which in (one_score, tower):
            neg, pos, mean = (t[o].item() for t in (which.negative_O, which.positive_O, which.mean_O))
            rows[which], shift = {c: (pos if y[c][o] else neg) / mean for c in cells}, np.log(pos / neg)
        own = np.mean([rows[tower][c] * bce(towers[c][o].item() + shift, y[c][o].item()) for c in cells])
        shared = np.mean([rows[one_score][c] * bce(score[c].item(), y[c][o].item()) for c in cells])
        expected += own + WEIGHTS[name] / sum(WEIGHTS.values()) * shared
    loss = p_score_loss(Outputs(towers, score, None), y, known, tower, one_score)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_unknown_labels_have_neither_value_nor_gradient():
    out = Outputs(*(torch.randn(*shape, requires_grad=True) for shape in ((2, 3, O), (2, 3), (2, 3))))
    y, known = torch.randint(2, (2, 3, O)).float(), torch.zeros(2, 3, O)
    known[0, 0, 0] = 1
    loss = p_score_loss(out, y, known, PLAIN, PLAIN)
    loss.backward()
    assert [int((t.grad != 0).sum()) for t in out] == [1, 1, 1]
    other = torch.where(known > 0, y, 1 - y)
    assert p_score_loss(out, other, known, PLAIN, PLAIN).item() == loss.item()


def test_a_single_objective_model_learns_from_its_own_label_only():
    out = Outputs(torch.randn(2, 3, O, requires_grad=True), torch.randn(2, 3, requires_grad=True), None)
    y, known = torch.randint(2, (2, 3, O)).float(), torch.ones(2, 3, O)
    loss = p_score_loss(out, y, known, PLAIN, PLAIN, objectives=("like",))
    loss.backward()
    like = LABELS.index("like")
    assert out.towers.grad[..., like].all() and not out.towers.grad[..., np.arange(O) != like].any()
    y[..., np.arange(O) != like] = 1 - y[..., np.arange(O) != like]
    assert p_score_loss(out, y, known, PLAIN, PLAIN, objectives=("like",)).item() == loss.item()


def test_weighting_the_classes_leaves_the_logit_calibrated():
    """One bias fitted to 2 % positives: with weights and the shift it still says 2 %."""
    y = torch.zeros(1, 500, O)
    y[:, :10] = 1
    known, classes = torch.ones_like(y), ClassWeights.of(y[0], torch.ones(500, O), balance=0.5)
    assert classes.positive_O[0].item() == pytest.approx(7)
    bias = torch.zeros(O, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = p_score_loss(Outputs(bias.expand(1, 500, O), torch.zeros(1, 500), None), y, known, classes, PLAIN)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(bias.detach().sigmoid(), torch.full((O,), 0.02), atol=1e-4, rtol=0)
