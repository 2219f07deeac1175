"""What a first day's fast training computes: its rows on the device, the order of batches, the loss, and one update.

    rows = on_device(data, used, weight, PretrainConfig())
    step, loss = make_step(model, optimizer, rows, recipe, clip=1.0, compiled=True)
    step(rows_B)

Legend: R rows, B rows of a batch, M targets a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.pieces import SHORT
from benchmarks.quality.protocol import autocast
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.training.data import PATHWAYS, UserDays
from models.training.losses import event_loss, item_loss, item_targets
from models.training.pretrain_config import PretrainConfig
from models.training.stream import DAY_S

Rows = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is chosen on validation; `rate` multiplies both learning rates of the daily recipe."""

    epochs: int = 8
    batch: int = 512
    rate: float = 1.0
    dropout: float = 0.0
    d_model: int = 96
    item_weight: float = 1.0
    shown_weight: float = 0.0  # of what was shown and not liked; then rows without a positive are trained on too
    history: str = "sid"
    pieces: int = 0  # impressions of a row (benchmarks.quality.pieces); 0: whole days
    short: int = SHORT  # length of the short history; a longer one takes events from the lifelong one (pieces.py)
    event_weight: float = 0.0  # of the loss of each short event's next item
    least: float = 0.15  # weight of the oldest rows; 1: all weigh the same
    drop_events: float = 0.0  # share of a history's events that a step does not see
    drop_static: float = 0.0  # share of the static codes that a step takes as unknown


def on_device(data: UserDays, used: np.ndarray, weight: np.ndarray, daily: PretrainConfig) -> Rows:
    """All used rows at full length, smallest integers; behind them one row that is all padding."""
    parts = []
    limit = {name: getattr(data.config, f"{name}_len") for name in PATHWAYS}
    limit |= {
        "targets": min(daily.max_targets, int(data.targets.lengths.max())),
        "others": min(daily.max_others, int(data.others.lengths.max())),
    }
    mask_of = {name: f"{name}_mask" for name in PATHWAYS} | {"targets": "target_mask", "others": "other_mask"}
    for start in range(0, len(used), 4096):
        chunk = used[start : start + 4096]
        batch = data.batch(chunk, daily.max_targets, daily.max_others)
        batch["weight"] = torch.from_numpy(weight[chunk]).float()
        for name, length in limit.items():
            mask = mask_of[name]
            missing = length - batch[name].shape[1]
            batch[name] = torch.nn.functional.pad(batch[name], (0, 0) * (batch[name].ndim - 2) + (missing, 0))
            batch[mask] = torch.nn.functional.pad(batch[mask], (missing, 0))
        parts.append({k: v.int() if v.dtype == torch.int64 else v for k, v in batch.items()})
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: torch.cat([t, torch.zeros_like(t[:1])]) for name, t in rows.items()}


def plan(rows: int, now_s: np.ndarray, recipe: Recipe, seed: int) -> list[np.ndarray]:
    """Row numbers of every batch [B]: seeded passes, the last one by day; a pass's last batch is filled up."""
    rng, batches = np.random.default_rng(seed), []
    for epoch in range(recipe.epochs):
        order = rng.permutation(rows)
        if epoch == recipe.epochs - 1:
            order = order[np.argsort(now_s[order] // DAY_S, kind="stable")]
        order = np.append(order, np.full(-len(order) % recipe.batch, rows))
        batches += list(order.reshape(-1, recipe.batch))
    return batches


def loss_of(model: OneRec, batch: Rows, recipe: Recipe) -> Tensor:
    """`models.training.losses.PretrainLoss` with shapes that do not depend on the data."""
    weight_BM = batch["target_mask"] * batch["weight"][:, None]
    targets_BM, total = batch["targets"], batch["target_mask"].sum()
    z_BTD, mask_BT = model.encode(batch, packs=False)
    codes_BML, nll = model.sid_NL[targets_BM], torch.zeros((), device=z_BTD.device)
    for level, logits in enumerate(model.code_logits(codes_BML, z_BTD, mask_BT)):
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), codes_BML[..., level].flatten(), reduction="none"
        )
        nll = nll + (each.view_as(weight_BM) * weight_BM).sum()
    items = item_loss(model, *item_targets(batch, recipe.shown_weight), z_BTD, total)
    loss = nll / total.clamp_min(1) + recipe.item_weight * items
    if recipe.event_weight:
        loss = loss + recipe.event_weight * event_loss(model, batch, z_BTD, total, batch.get("next_mask"))
    return loss


def forgetful(batch: Rows, recipe: Recipe) -> Rows:
    """The batch without some events and static codes, others at each step: a row that comes back is another context."""
    if recipe.drop_events:
        masks = {f"{name}_mask": batch[f"{name}_mask"] for name in PATHWAYS}
        kept = {name: m & (torch.rand(m.shape, device=m.device) >= recipe.drop_events) for name, m in masks.items()}
        batch = batch | kept | {"next_mask": batch["short_mask"]}  # what is forgotten may still be foretold
    if recipe.drop_static:
        kept = torch.rand(batch["static"].shape, device=batch["static"].device) >= recipe.drop_static
        batch = batch | {"static": batch["static"] * kept}
    return batch


def make_step(
    model: OneRec, optimizer: torch.optim.Optimizer, rows: Rows, recipe: Recipe, clip: float, compiled: bool = False
) -> tuple[Callable[[Tensor], None], Tensor]:
    """step(rows_B): gather the rows, one update; and the loss of the last one, a scalar on the device."""
    parameters, moes = list(model.parameters()), [m for m in model.modules() if isinstance(m, MoE)]
    loss_fn = torch.compile(loss_of) if compiled else loss_of
    last = torch.zeros((), device=rows["weight"].device)

    def step(rows_B: Tensor) -> None:
        batch = {k: v.index_select(0, rows_B) for k, v in rows.items()}
        batch = forgetful({k: v.long() if v.dtype == torch.int32 else v for k, v in batch.items()}, recipe)
        optimizer.zero_grad(set_to_none=True)
        with autocast(rows_B.device):
            loss = loss_fn(model, batch, recipe)
        last.copy_(loss.detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        for moe in moes:
            moe.balance()

    return step, last
