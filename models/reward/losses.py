"""Losses of the P-Score: a BCE an objective for its tower, and one score against all labels with positive weights.

Rare labels. A row of an objective's rarer class weighs (common / rare) ** balance, at most MOST_WEIGHT: every like
counts, and thousands of rows without one do not drown it. A tower trained on weighted rows would claim too much, by a
factor in its odds that is known exactly: the ratio of the two weights. So its loss sees logit + log(ratio), and the
logit itself, which is what everything else reads, is that of the unweighted rows (measure.calibrate does the rest).
The one score gets row weights without a shift: compared with eight labels at once it is no probability. It needs them
more than a tower does: without them it is a click model. docs/decisions/alignment.md has the measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.onerec.features import LABELS
from models.reward.pscore import Outputs

TOWER_BALANCE, SCORE_BALANCE, MOST_WEIGHT = 0.25, 0.5, 100.0
# w^xtr, all positive, only ratios matter; found by models/reward/weights.py on KuaiRand (docs/decisions/alignment.md).
# Hate's target is "not hated".
WEIGHTS = {
    "click": 1.0,
    "long_view": 1.0,
    "like": 1.0,
    "follow": 1.0,
    "comment": 1.0,
    "forward": 1.0,
    "hate": 1.0,
    "profile_enter": 1.2,
}


@dataclasses.dataclass(frozen=True, eq=False)
class ClassWeights:
    """Weights of a row by its class, [O] each, and the mean weight of an objective's rows, which its loss is over."""

    negative_O: Tensor
    positive_O: Tensor
    mean_O: Tensor

    @classmethod
    def of(cls, y: Tensor, known: Tensor, balance: float) -> ClassWeights:
        """From the labels [rows, O] that will be trained on. An objective with one class has weights of 1."""
        rows = known.sum(0).double()
        positives = (y * known).sum(0).double()
        negatives = rows - positives
        both = (positives > 0) & (negatives > 0)
        odds = torch.where(both, negatives / positives.clamp_min(1), 1.0)
        positive = odds.clamp_min(1).pow(balance).clamp_max(MOST_WEIGHT)
        negative = odds.reciprocal().clamp_min(1).pow(balance).clamp_max(MOST_WEIGHT)
        mean = (positive * positives + negative * negatives) / rows.clamp_min(1)
        return cls(negative.float(), positive.float(), torch.where(rows > 0, mean, 1.0).float())

    def to(self, device: torch.device) -> ClassWeights:
        return ClassWeights(self.negative_O.to(device), self.positive_O.to(device), self.mean_O.to(device))

    @property
    def shift_O(self) -> Tensor:
        """What weighting the classes adds to the logit of a tower."""
        return (self.positive_O / self.negative_O).log()

    def of_rows(self, y: Tensor, known: Tensor) -> Tensor:
        """Weight of every row and objective, shaped as `y`; an objective's known rows weigh 1 on average."""
        return torch.where(y > 0, self.positive_O, self.negative_O) / self.mean_O * known


def targets_of(label_BM: Tensor, known_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Bit masks to targets and their availability, each [B, M, O] float. Hate is inverted: 1 means not hated."""
    bits = torch.arange(len(LABELS), device=label_BM.device)
    y = ((label_BM[..., None] >> bits) & 1).float()
    hate = LABELS.index("hate")
    y[..., hate] = 1 - y[..., hate]
    return y, ((known_BM[..., None] >> bits) & 1).float()


def p_score_loss(
    out: Outputs,
    y: Tensor,
    known: Tensor,
    tower: ClassWeights,
    score: ClassWeights,
    weights: Mapping[str, float] = WEIGHTS,
    objectives: tuple[str, ...] = LABELS,
) -> Tensor:
    """Towers' BCEs plus the weighted mean of the one score's BCEs, and the soft search's own; means over known rows.

    `objectives` restricts all of it to some labels: what a single-objective model is trained with.
    """
    towers = mean_bce(out.towers + tower.shift_O, y, known, tower)
    used = torch.tensor([name in objectives for name in LABELS], device=y.device)
    loss = (towers * used).sum() + score_loss(out.score, y, known, score, weights, objectives)
    if out.search is not None:
        own = LABELS.index("click" if "click" in objectives else objectives[0])
        seen, bce = known[..., own], F.binary_cross_entropy_with_logits(out.search, y[..., own], reduction="none")
        loss = loss + (bce * seen).sum() / seen.sum().clamp_min(1)
    return loss


def score_loss(
    score: Tensor,
    y: Tensor,
    known: Tensor,
    classes: ClassWeights,
    weights: Mapping[str, float] = WEIGHTS,
    objectives: tuple[str, ...] = LABELS,
) -> Tensor:
    """Weighted mean over the objectives of the BCE of one score [...] against every label [..., O]."""
    w = torch.tensor([weights[name] if name in objectives else 0.0 for name in LABELS], device=y.device)
    return (w * mean_bce(score[..., None].expand_as(y), y, known, classes)).sum() / w.sum()


def mean_bce(logits: Tensor, y: Tensor, known: Tensor, classes: ClassWeights) -> Tensor:
    """BCE of each objective [O], the mean over its known rows with their class weights; 0 where none is known."""
    bce = F.binary_cross_entropy_with_logits(logits, y, reduction="none") * classes.of_rows(y, known)
    return bce.flatten(0, -2).sum(0) / known.flatten(0, -2).sum(0).clamp_min(1)
