"""A first day's pre-training on one GPU, as fast as so small a model allows: all rows on the device, steps as graphs.

    first_day(training_sets=[...], tokenizer=folder, out=folder, recipe=Recipe(), seed=1, device="cuda")
    later_day(training_set=path, tokenizer=folder, previous=folder, out=folder, recipe=Recipe(), passes=2, rate=0.1,
              seed=1, device="cuda")

Model, losses, recency weights, two learning rates with warm-up and cosine, clipping and the experts' balance are those
of `models.training.pretrain`; a last epoch goes by day, as there. What differs: padding is computed and masked
(`packs=False`), so that a step has one shape, is compiled and replayed as a CUDA graph; batches are larger and of fixed
size; and the numbers of a `Recipe`, which are chosen on validation. Writes what `pretrain` writes, without metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.quality.first_day_step import Recipe, make_step, on_device, plan
from benchmarks.quality.pieces import in_pieces, regroup
from benchmarks.quality.steps import Steps
from models.onerec.config import OneRecConfig, onerec_laptop
from models.onerec.loop_barrier import loop_barriers
from models.onerec.model import OneRec
from models.training.checkpoint import (
    Tokenizer,
    load_model,
    load_optimizer,
    save_model,
    save_optimizer,
    start_optimizer,
)
from models.training.data import UserDays
from models.training.optimizer import learning_rate, make_optimizer
from models.training.pretrain import static_features
from models.training.pretrain_config import PretrainConfig
from models.training.stream import COLUMNS, Index, Recency

DIVERGED = 2.0  # times the loss of the first step
MOST_POSITIONS = 96  # of short and positive history together: what a longer short history leaves of the other


def first_day(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    out: Path,
    recipe: Recipe,
    seed: int,
    device: str,
    graphs: bool = True,
) -> OneRec:
    """Train on all rows with something to learn, write the model into `out`, and return it.

    graphs: on CUDA, a step is compiled and replayed.
    """
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    model = OneRec(config_of(recipe, tok, static_features(training_sets[0])), torch.from_numpy(tok.sid_NL))
    model = model.to(device).train()
    optimizer, names = optimizer_of(model, recipe.rate)
    start_optimizer(optimizer)
    fit(model, optimizer, training_sets, tok, recipe, seed, graphs)
    save(model, optimizer, names, out)
    return model.eval()


def later_day(
    *,
    training_set: Path,
    tokenizer: Path,
    previous: Path,
    out: Path,
    recipe: Recipe,
    passes: int,
    rate: float,
    seed: int,
    device: str,
) -> OneRec:
    """The model of the day before in `previous`, trained on one day's rows as a first day is, `passes` times.

    rate: multiplies the recipe's; on the day of a refit of the tokenizer, when codes have moved, it is 1 as in
    `pretrain`.
    """
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    model = load_model(previous, tok).to(device).train()
    carry = tok.carries(previous / "model.safetensors")
    rate = 1.0 if carry is not None and carry.refit else rate
    recipe = dataclasses.replace(recipe, epochs=passes, rate=recipe.rate * rate)
    optimizer, names = optimizer_of(model, recipe.rate)
    load_optimizer(optimizer, names, previous / "optimizer.safetensors", len(tok.catalogue), carry)
    # So few steps that to compile and capture one would take longer than they do.
    fit(model, optimizer, [training_set], tok, recipe, seed, graphs=False)
    save(model, optimizer, names, out)
    return model.eval()


def optimizer_of(model: OneRec, rate: float) -> tuple[torch.optim.Optimizer, dict[int, str]]:
    """The daily optimiser at `rate` times its learning rates, and the parameters' names."""
    daily, device = PretrainConfig(), model.bos_D.device
    optimizer, names = make_optimizer(
        model, lr_sparse=rate * daily.lr_sparse, lr_dense=rate * daily.lr_dense, weight_decay=daily.weight_decay
    )
    for group in optimizer.param_groups:  # a captured step reads its rate from a tensor
        group["lr"], group["capturable"] = torch.tensor(group["base_lr"], device=device), device.type == "cuda"
    return optimizer, names


def fit(
    model: OneRec,
    optimizer: torch.optim.Optimizer,
    training_sets: list[Path],
    tok: Tokenizer,
    recipe: Recipe,
    seed: int,
    graphs: bool,
) -> None:
    """All passes over the rows of these days. RuntimeError when the loss goes up instead: such a model ranks nothing,
    and its number would stand in a table."""
    daily, device = PretrainConfig(), model.bos_D.device
    table = pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in sorted(training_sets)])
    table = in_pieces(table, recipe.pieces, recipe.short) if recipe.pieces else regroup(table, recipe.short)
    data = UserDays(table, tok.catalogue, model.config)
    weight = Recency(half_life_days=daily.half_life_days, least=recipe.least).weight(
        data.now_s, Index.scan(training_sets, tok.catalogue)
    )
    used = np.flatnonzero(data.targets.lengths + (data.others.lengths if recipe.shown_weight else 0))
    rows = {name: t.to(device) for name, t in on_device(data, used, weight, daily).items()}
    compiled = graphs and device.type == "cuda"
    step, loss = make_step(model, optimizer, rows, recipe, daily.clip_norm, compiled=compiled)
    batches = plan(len(used), data.now_s[used], recipe, seed)
    run, steps = Steps(step, device) if graphs else step, len(batches)
    batches_CB = torch.from_numpy(np.stack(batches)).to(device)
    begun, first = time.monotonic(), math.nan
    with loop_barriers() if compiled else contextlib.nullcontext():
        for number, rows_B in enumerate(batches_CB):
            for group in optimizer.param_groups:
                group["lr"].fill_(group["base_lr"] * learning_rate(number, steps, daily.warmup_share))
            run(rows_B)
            if number in (0, 9, 999) or (number + 1) % 4000 == 0:
                seconds, value = time.monotonic() - begun, loss.item()
                print(f"{number + 1} of {steps} steps after {seconds:.0f} s, loss {value:.3f}", flush=True)
                first = value if number == 0 else first
                if not value <= DIVERGED * first:  # nan too
                    raise RuntimeError(
                        f"the loss went from {first:.3f} to {value:.3f} in {number + 1} steps: lower the recipe's rate"
                        + (", or see whether ONEREC_NO_GRAPHS=1, without the compiler, learns" if compiled else "")
                    )


def save(model: OneRec, optimizer: torch.optim.Optimizer, names: dict[int, str], out: Path) -> None:
    """What `pretrain` leaves, without metrics."""
    out.mkdir(parents=True, exist_ok=True)
    save_model(model, out)
    save_optimizer(optimizer, names, out)


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
