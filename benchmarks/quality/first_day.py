"""A first day's pre-training on one GPU, as fast as so small a model allows: all rows on the device, steps as graphs.

    first_day(training_sets=[...], tokenizer=folder, out=folder, recipe=Recipe(), seed=1, device="cuda")

Model, losses, recency weights, two learning rates with warm-up and cosine, clipping and the experts' balance are those
of `models.training.pretrain`; a last epoch goes by day, as there. What differs: padding is computed and masked
(`packs=False`), so that a step has one shape, is compiled and replayed as a CUDA graph; batches are larger and of fixed
size; and the numbers of a `Recipe`, which are chosen on validation. Writes what `pretrain` writes, without metrics.

Legend: R rows, B rows of a batch, M targets a row.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.quality.pieces import SHORT, in_pieces, regroup
from benchmarks.quality.protocol import autocast
from benchmarks.quality.steps import Steps
from models.onerec.config import OneRecConfig, onerec_laptop
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.training.checkpoint import Tokenizer, save_model, save_optimizer, start_optimizer
from models.training.data import PATHWAYS, UserDays
from models.training.losses import event_loss, item_loss, item_targets
from models.training.optimizer import learning_rate, make_optimizer
from models.training.pretrain import PretrainConfig, static_features
from models.training.stream import COLUMNS, DAY_S, Index, Recency

Rows = dict[str, Tensor]
MOST_POSITIONS = 96  # of short and positive history together: what a longer short history leaves of the other


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


def first_day(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    out: Path,
    recipe: Recipe,
    seed: int,
    device: str,
    graphs: bool = True,
    progress: Callable[[str], None] = print,
) -> OneRec:
    """Train on all rows with something to learn, write the model into `out`, and return it. `graphs`: on CUDA."""
    torch.manual_seed(seed)
    tok, daily = Tokenizer.load(tokenizer), PretrainConfig()
    config = config_of(recipe, tok, static_features(training_sets[0]))
    model = OneRec(config, torch.from_numpy(tok.sid_NL)).to(device).train()
    table = pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in sorted(training_sets)])
    table = in_pieces(table, recipe.pieces, recipe.short) if recipe.pieces else regroup(table, recipe.short)
    data = UserDays(table, tok.catalogue, config)
    weight = Recency(half_life_days=daily.half_life_days, least=recipe.least).weight(
        data.now_s, Index.scan(training_sets, tok.catalogue)
    )
    used = np.flatnonzero(data.targets.lengths + (data.others.lengths if recipe.shown_weight else 0))
    rows = {name: t.to(device) for name, t in on_device(data, used, weight, daily).items()}
    optimizer, names = make_optimizer(
        model,
        lr_sparse=recipe.rate * daily.lr_sparse,
        lr_dense=recipe.rate * daily.lr_dense,
        weight_decay=daily.weight_decay,
    )
    for group in optimizer.param_groups:  # a captured step reads its rate from a tensor
        group["lr"], group["capturable"] = torch.tensor(group["base_lr"], device=device), device.startswith("cuda")
    start_optimizer(optimizer)
    step = make_step(model, optimizer, rows, recipe, daily.clip_norm)
    batches = plan(len(used), data.now_s[used], recipe, seed)
    run, steps = Steps(step, torch.device(device)) if graphs else step, len(batches)
    batches_CB = torch.from_numpy(np.stack(batches)).to(device)
    begun = time.monotonic()
    for number, rows_B in enumerate(batches_CB):
        if number in (9, 999) or (number + 1) % 4000 == 0:
            progress(f"{number + 1} of {steps} steps after {time.monotonic() - begun:.0f} s")
        for group in optimizer.param_groups:
            group["lr"].fill_(group["base_lr"] * learning_rate(number, steps, daily.warmup_share))
        run(rows_B)
    out.mkdir(parents=True, exist_ok=True)
    save_model(model, out)
    save_optimizer(optimizer, names, out)
    return model.eval()


def config_of(recipe: Recipe, tok: Tokenizer, static: int) -> OneRecConfig:
    """The daily model at the recipe's width and dropout."""
    config = onerec_laptop(codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static)
    return dataclasses.replace(
        config,
        dropout=recipe.dropout,
        d_model=recipe.d_model,
        ffn_dim=2 * recipe.d_model,
        history=recipe.history,
        event_head=recipe.event_weight > 0,
        short_len=recipe.short,
        positive_len=min(config.positive_len, MOST_POSITIONS - recipe.short),
    )


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


def make_step(model: OneRec, optimizer: torch.optim.Optimizer, rows: Rows, recipe: Recipe, clip: float):
    """step(rows_B): gather the rows, one update."""
    parameters, moes = list(model.parameters()), [m for m in model.modules() if isinstance(m, MoE)]
    loss_fn = torch.compile(loss_of) if rows["static"].is_cuda else loss_of

    def step(rows_B: Tensor) -> None:
        batch = {k: v.index_select(0, rows_B) for k, v in rows.items()}
        batch = forgetful({k: v.long() if v.dtype == torch.int32 else v for k, v in batch.items()}, recipe)
        optimizer.zero_grad(set_to_none=True)
        with autocast(rows_B.device):
            loss = loss_fn(model, batch, recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        for moe in moes:
            moe.balance()

    return step
