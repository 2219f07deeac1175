"""Pre-training: next-token prediction on the positives of each user and day, from the checkpoint of the day before.

On the first day the rows of all days are passed over at least once, and so often that at least `min_steps` steps are
taken; newer days weigh more, and the last pass runs in day order. A later day passes over its own rows once.
Writes model.safetensors, config.json, optimizer.safetensors, metrics.json.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.training.checkpoint import Tokenizer, load_model, load_optimizer, save_model, save_optimizer
from models.training.data import TrainingSet
from models.training.losses import item_loss, ntp_loss

DAY_S = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Knobs of pre-training. Learning rates: sparse = embedding tables, dense = the rest."""

    min_steps: int = 480  # at bootstrap: a small log is passed over several times
    batch_size: int = 128
    max_targets: int = 8
    lr_sparse: float = 3e-3
    lr_dense: float = 1.5e-3
    lr_daily_scale: float = 0.1  # where bootstrap's cosine ends
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    clip_norm: float = 1.0
    item_loss_weight: float = 1.0
    half_life_days: float = 4.0
    min_weight: float = 0.15


def pretrain(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    previous: Path | None,
    out: Path,
    seed: int,
    progress: Callable[[str], None] = print,
    config: PretrainConfig = PretrainConfig(),
    device: str = "cpu",
) -> dict:
    """Train one day (previous given) or bootstrap (None); returns the metrics for the report.

    Raises ValueError when there is not one positive to learn from, FloatingPointError when the loss is not finite.
    """
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    if previous is None:
        model = OneRec(
            onerec_laptop(
                codebook_size=tok.codebook_size,
                items=len(tok.catalogue),
                static_features=static_features(training_sets[0]),
            ),
            torch.from_numpy(tok.sid_NL),
        )
    else:
        model = load_model(previous, tok)
    model.to(device).train()
    data = TrainingSet(training_sets, tok.catalogue, model.config)
    rows = np.flatnonzero(data.targets.lengths > 0)
    if not len(rows):
        raise ValueError(
            "no positive impression (long_view, like, follow, forward) in the training rows: nothing to learn"
        )
    epochs = 1 if previous else math.ceil(config.min_steps * config.batch_size / len(rows))
    batches = _schedule(data, rows, epochs, config, seed)
    weight = _recency(data.now_s, config)
    weight /= np.average(weight, weights=data.targets.lengths)
    optimizer, names = make_optimizer(model, config)
    if previous is not None:
        carry = tok.carries(previous / "model.safetensors")
        load_optimizer(optimizer, names, previous / "optimizer.safetensors", len(tok.catalogue), carry)
    scale = 1.0 if previous is None else config.lr_daily_scale
    curve, targets, begun, said = [], 0, time.monotonic(), 0.0
    recent: list[list[float]] = []
    for step, batch_rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale * learning_rate(step, len(batches), config.warmup_share)
        batch = {k: v.to(device) for k, v in data.batch(batch_rows, config.max_targets).items()}
        w_BM = batch["target_mask"] * torch.from_numpy(weight[batch_rows]).to(device, torch.float32)[:, None]
        z, mask = model.encode(batch)
        ntp, levels = ntp_loss(model, batch["targets"], w_BM, z, mask)
        loss = ntp + config.item_loss_weight * item_loss(model, batch["targets"], w_BM, z)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step}; lower lr_dense or look at the rows of this batch"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step}; lower lr_dense or lr_sparse")
        optimizer.step()
        expert_load = [m.load_E.tolist() for m in model.modules() if isinstance(m, MoE)]
        for module in model.modules():
            if isinstance(module, MoE):
                module.balance()
        targets += int(batch["target_mask"].sum())
        recent.append([levels.sum().item(), *levels.tolist()])
        if len(recent) == max(1, len(batches) // 100) or step == len(batches) - 1:
            mean = np.mean(recent, 0)
            curve.append({"step": step + 1, "loss": mean[0], **{f"loss_c{i}": v for i, v in enumerate(mean[1:])}})
            recent = []
        if time.monotonic() - said > 5:
            said = time.monotonic()
            rate = targets / (said - begun)
            loss_now = curve[-1]["loss"] if curve else levels.sum().item()
            progress(f"step {step + 1}/{len(batches)}  loss {loss_now:.3f}  {rate:,.0f} targets/s")
    save_model(model, out)
    save_optimizer(optimizer, names, out)
    metrics = {
        "loss": curve,
        "samples": len(rows),
        "targets": targets,
        "steps": len(batches),
        "epochs": epochs,
        "seconds": time.monotonic() - begun,
        "expert_load": expert_load,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    (out / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k != "seconds"}, indent=1) + "\n")
    return metrics


def static_features(path: Path) -> int:
    """Number of static codes a user has in this training set."""
    column = pq.read_table(path, columns=["static_codes"])["static_codes"].combine_chunks()
    if not len(column):
        raise ValueError(f"no training rows in {path}; run the features step of this day again")
    return int(column.value_lengths()[0].as_py())


def _recency(now_s: np.ndarray, config: PretrainConfig) -> np.ndarray:
    """Loss weight of a row: halves every `half_life_days`, never under `min_weight`."""
    age = (now_s.max() - now_s) / DAY_S
    return np.maximum(0.5 ** (age / config.half_life_days), config.min_weight)


def _schedule(data: TrainingSet, rows: np.ndarray, epochs: int, config: PretrainConfig, seed: int) -> list[np.ndarray]:
    """Shuffled epochs, then one in day order, so that training ends on what is newest."""
    out = [b for epoch in range(epochs - 1) for b in data.batches(rows, config.batch_size, seed + epoch)]
    day = data.now_s[rows] // DAY_S
    for d in np.unique(day):
        out += list(data.batches(rows[day == d], config.batch_size, seed + epochs))
    return out


def learning_rate(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then cosine to a tenth."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: OneRec, config: PretrainConfig) -> tuple[torch.optim.AdamW, dict[int, str]]:
    """AdamW in two groups (sparse tables without weight decay), and the name of each parameter by id."""
    sparse = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    groups = [
        {
            "params": [p for p in model.parameters() if id(p) in sparse],
            "base_lr": config.lr_sparse,
            "weight_decay": 0.0,
        },
        {"params": [p for p in model.parameters() if id(p) not in sparse], "base_lr": config.lr_dense},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=config.lr_dense, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    return optimizer, {id(p): name for name, p in model.named_parameters()}
