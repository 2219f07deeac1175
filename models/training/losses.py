"""Losses of pre-training: next-token prediction over the three codes, the item-level softmax, and that of each event.

Legend: B users, M targets a user, L short events, P pairs of events, K codebook size, T context tokens, D model width,
N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.onerec.rows import Layout


def ntp_loss(
    model: OneRec,
    targets_BM: Tensor,
    weight_BM: Tensor,
    z_BTD: Tensor,
    mask_BT: Tensor | None,
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
    for level, logits in enumerate(model.code_logits(codes_BML, z_BTD, mask_BT, real_BM)):
        nll = F.cross_entropy(logits.flatten(0, 1).float(), codes_BML[..., level].flatten(), reduction="none")
        nll_BM = nll.view_as(weight_BM)
        weighted.append((nll_BM * weight_BM).sum() / total)
        plain.append((nll_BM.detach() * real_BM).sum() / total)
    return torch.stack(weighted).sum(), torch.stack(plain)


def item_loss(
    model: OneRec, targets_BM: Tensor, weight_BM: Tensor, z_BTD: Tensor, total: Tensor | None = None
) -> Tensor:
    """Full-softmax cross-entropy of the item head against every target of the user, weighted as `ntp_loss` is.

    0 for a model without that head.
    """
    if not model.config.item_head:
        return z_BTD.new_zeros(())
    total = ((weight_BM > 0).sum() if total is None else total).clamp_min(1)
    logp = torch.log_softmax(model.item_logits(z_BTD).float(), -1)
    return -(logp.gather(1, targets_BM) * weight_BM).sum() / total


def event_loss(
    model: OneRec,
    batch: dict[str, Tensor],
    z_BTD: Tensor,
    total: Tensor,
    next_mask_BL: Tensor | None = None,
) -> Tensor:
    """Full-softmax cross-entropy of each short event against the item of the next one, weighted as its row is.

    A causal model over events learns so (SASRec): every place of a history is an example, not its end alone. Only pairs
    of real events count, and a next item that the catalogue knows. Their sum is divided by `total`, the number of
    targets, as `item_loss` is: a row counts for as many pairs as it has. next_mask_BL: which short events are real as
    a next one, where that is not `short_mask` (events that this step's encoder was not shown).
    """
    next_BP, L = batch["short"][:, 1:, 0], batch["short"].shape[1]
    count_BP = next_BP < model.config.items
    if (mask_BL := batch.get("short_mask")) is not None:
        after_BL = mask_BL if next_mask_BL is None else next_mask_BL
        count_BP = count_BP & after_BL[:, 1:] & mask_BL[:, :-1]
    # A compiled step, whose shapes are better fixed, computes the other pairs too, with weight 0.
    pairs = Layout.of(len(count_BP), L - 1, count_BP, packs=not torch.compiler.is_compiling())
    logits = model.event_logits(pairs.pack(z_BTD[:, 1:L]))  # short events stand behind the static position
    target = pairs.pack(torch.where(count_BP, next_BP, 0))
    nll = F.cross_entropy(logits.float(), target, reduction="none")
    return (nll * pairs.pack(count_BP * batch["weight"][:, None])).sum() / total.clamp_min(1)


class PretrainLoss(nn.Module):
    """The whole of pre-training's mathematics as one forward: what is sharded, compiled and run under autocast.

    `balance_weight` adds `balance_loss` of every MoE layer: the scheme that loss-free balancing replaces.
    `shown_weight`: what an item that was shown and not liked (`others` of the batch) weighs as a target of the item
    head, beside 1 of a positive. A user likes tomorrow what they are shown, and there is more of that to learn from.
    `event_weight`: of `event_loss`, which a model without an event head has none of.
    """

    def __init__(
        self,
        model: OneRec,
        item_weight: float,
        balance_weight: float = 0.0,
        shown_weight: float = 0.0,
        event_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.item_weight, self.balance_weight = model, item_weight, balance_weight
        self.shown_weight = shown_weight
        self.event_weight = event_weight if model.config.event_head else 0.0
        self._routed: list[Tensor] = []
        if balance_weight:
            for layer in (m for m in model.modules() if isinstance(m, MoE)):
                layer.register_forward_hook(lambda moe, args, out: self._routed.append(balance_loss(moe, args[0])))

    def forward(self, batch: dict[str, Tensor], total: Tensor) -> tuple[Tensor, Tensor]:
        """NTP loss + `item_weight` times the item loss + `event_weight` times the event loss, and each level's plain
        mean [3], all as shares of `total`.

        batch: as `models.training.stream.Stream` yields it; total: number of targets of the global batch.
        """
        self._routed.clear()  # of a forward pass that was not ours, as an evaluation's
        weight_BM = batch["target_mask"] * batch["weight"][:, None]
        z_BTD, mask_BT = self.model.encode(batch)
        loss, levels = ntp_loss(self.model, batch["targets"], weight_BM, z_BTD, mask_BT, total)
        loss = loss + self.item_weight * item_loss(self.model, *item_targets(batch, self.shown_weight), z_BTD, total)
        if self.event_weight:
            loss = loss + self.event_weight * event_loss(self.model, batch, z_BTD, total)
        if self._routed:
            share = batch["target_mask"].sum() / total.clamp_min(1)
            loss = loss + self.balance_weight * share * torch.stack(self._routed).sum()
        return loss, levels


def item_targets(batch: dict[str, Tensor], shown_weight: float) -> tuple[Tensor, Tensor]:
    """Targets of the item head and their weights: the positives, and what else was shown."""
    weight_BM = batch["target_mask"] * batch["weight"][:, None]
    if not shown_weight:
        return batch["targets"], weight_BM
    other_BM = shown_weight * batch["other_mask"] * batch["weight"][:, None]
    return torch.cat([batch["targets"], batch["others"]], 1), torch.cat([weight_BM, other_BM], 1)


def balance_loss(moe: MoE, x: Tensor) -> Tensor:
    """E * sum over experts of (share of assignments) * (mean normalised affinity): 1 when even.

    Switch Transformer's auxiliary loss (arXiv 2101.03961, equation 4) with k choices and sigmoid affinities normalised
    over the experts, as DeepSeek-V3 does for its sequence-wise loss.
    """
    x_ND = x.reshape(-1, x.shape[-1])
    affinity_NE = torch.sigmoid(F.linear(x_ND.float(), moe.router.weight.float()))
    chosen_NK = torch.topk(affinity_NE.detach() + moe.bias_E, moe.k, dim=-1).indices
    experts = affinity_NE.shape[1]
    share_E = torch.bincount(chosen_NK.flatten(), minlength=experts) / chosen_NK.numel()
    mean_E = (affinity_NE / affinity_NE.sum(-1, keepdim=True)).mean(0)
    return experts * (share_E * mean_E).sum()
