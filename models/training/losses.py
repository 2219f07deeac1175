"""Losses of pre-training: next-token prediction over the three codes, and the item-level softmax.

Legend: B users, M targets a user, K codebook size, T context tokens, D model width, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.onerec.model import OneRec


def ntp_loss(
    model: OneRec, targets_BM: Tensor, weight_BM: Tensor, z_BTD: Tensor, mask_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over levels (TR section 2.3), weighted mean over targets; and each level's plain mean [3].

    weight_BM is 0 where a target is padding. The mean is over the number of targets, not over their weights: a batch of
    old rows counts for less than one of new rows.
    """
    codes_BML, real_BM = model.sid_NL[targets_BM], weight_BM > 0
    total = real_BM.sum().clamp_min(1)
    weighted, plain = [], []
    for level, logits in enumerate(model.code_logits(codes_BML, z_BTD, mask_BT, real_BM)):
        nll = F.cross_entropy(logits.flatten(0, 1).float(), codes_BML[..., level].flatten(), reduction="none")
        nll_BM = nll.view_as(weight_BM)
        weighted.append((nll_BM * weight_BM).sum() / total)
        plain.append((nll_BM.detach() * real_BM).sum() / total)
    return torch.stack(weighted).sum(), torch.stack(plain)


def item_loss(model: OneRec, targets_BM: Tensor, weight_BM: Tensor, z_BTD: Tensor) -> Tensor:
    """Full-softmax cross-entropy of the item head against every target of the user, weighted as `ntp_loss` is.

    0 for a model without that head.
    """
    if not model.config.item_head:
        return z_BTD.new_zeros(())
    logp = torch.log_softmax(model.item_logits(z_BTD).float(), -1)
    return -(logp.gather(1, targets_BM) * weight_BM).sum() / (weight_BM > 0).sum().clamp_min(1)
