"""AdamW in two groups, sparse (embedding tables) and dense, each with its learning rate; warm-up, then cosine.

optimizer, names = make_optimizer(model, lr_sparse=3e-3, lr_dense=1.5e-3, weight_decay=0.05)
set_rate(optimizer, scale * learning_rate(step, steps, 0.05))
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def learning_rate(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then cosine to a tenth."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Every group's rate: its own `base_lr` times `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale


def make_optimizer(
    model: nn.Module, *, lr_sparse: float, lr_dense: float, weight_decay: float
) -> tuple[torch.optim.AdamW, dict[int, str]]:
    """AdamW (fused kernels) without weight decay on tables, and the name of each parameter by id.

    Row-sharded tables lie on another mesh than the rest, and one fused call takes one mesh: they get their own group.
    """
    sparse = {id(p) for name, p in model.named_parameters() if is_table(model, name)}
    kinds: dict[tuple, list[nn.Parameter]] = {}
    for p in model.parameters():
        mesh = p.device_mesh if isinstance(p, DTensor) else None
        kinds.setdefault((id(p) not in sparse, None if mesh is None else mesh.ndim, id(mesh)), []).append(p)
    groups = [
        {
            "params": params,
            "base_lr": lr_dense if dense else lr_sparse,
            "weight_decay": weight_decay if dense else 0.0,
        }
        for (dense, *_), params in sorted(kinds.items(), key=lambda kind: kind[0][0])
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr_dense, betas=(0.9, 0.95), fused=True)
    return optimizer, {id(p): name for name, p in model.named_parameters()}


def is_table(model: nn.Module, name: str) -> bool:
    """Is this parameter the rows of an embedding table (whole or row-sharded)?"""
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and hasattr(model.get_submodule(owner), "num_embeddings")
