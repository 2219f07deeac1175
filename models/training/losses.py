"""Losses of pre-training: next-token prediction over the three codes, and the item-level softmax.

Legend: B users, M targets a user, K codebook size, T context tokens, D model width, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.model import OneRec


def ntp_loss(
    model: OneRec,
    targets_BM: Tensor,
    weight_BM: Tensor,
    z_BTD: Tensor,
    mask_BT: Tensor,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over levels (TR section 2.3), weighted mean over targets; and each level's plain mean [3].

    weight_BM is 0 where a target is padding. The mean is over the number of targets, not over their weights: a batch of
    old rows counts for less than one of new rows. `total` is that number where the batch is a part of a larger one: the
    parts' losses then add up to the whole's.
    """
    codes_BML, real_BM = model.sid_NL[targets_BM], weight_BM > 0
    total = (real_BM.sum() if total is None else total).clamp_min(1)
    weighted, plain = [], []
    for level, logits in enumerate(model.code_logits(codes_BML, z_BTD, mask_BT)):
        nll = F.cross_entropy(logits.flatten(0, 1).float(), codes_BML[..., level].flatten(), reduction="none")
        nll_BM = nll.view_as(weight_BM)
        weighted.append((nll_BM * weight_BM).sum() / total)
        plain.append((nll_BM.detach() * real_BM).sum() / total)
    return torch.stack(weighted).sum(), torch.stack(plain)


def item_loss(
    model: OneRec, targets_BM: Tensor, weight_BM: Tensor, z_BTD: Tensor, total: Tensor | None = None
) -> Tensor:
    """Full-softmax cross-entropy of the item head against every target of the user, weighted as `ntp_loss` is."""
    total = ((weight_BM > 0).sum() if total is None else total).clamp_min(1)
    logp = torch.log_softmax(model.item_logits(z_BTD).float(), -1)
    return -(logp.gather(1, targets_BM) * weight_BM).sum() / total


class PretrainLoss(nn.Module):
    """The whole of pre-training's mathematics as one forward: what is sharded, compiled and run under autocast."""

    def __init__(self, model: OneRec, item_weight: float) -> None:
        super().__init__()
        self.model, self.item_weight = model, item_weight

    def forward(self, batch: dict[str, Tensor], total: Tensor) -> tuple[Tensor, Tensor]:
        """NTP loss + `item_weight` times the item loss, and each level's plain mean [3], both as shares of `total`.

        batch: as `models.training.stream.Stream` yields it; total: number of targets of the global batch.
        """
        weight_BM = batch["target_mask"] * batch["weight"][:, None]
        z_BTD, mask_BT = self.model.encode(batch)
        loss, levels = ntp_loss(self.model, batch["targets"], weight_BM, z_BTD, mask_BT, total)
        item = item_loss(self.model, batch["targets"], weight_BM, z_BTD, total)
        return loss + self.item_weight * item, levels
