"""One optimiser step of pre-training: backward over micro-batches, clipping, update, expert balancing.

    training = TrainingStep(loss, optimizer, processes, config, bf16=True)
    total, *levels = training.backward(parts, targets)
    norm = training.clip()
    loads = training.update()

In bfloat16 one process computes by working copies of the weights (models/training/working_copies.py). Where several
share the model, FSDP casts what it gathers; where micro-batches are accumulated, gradients are to be summed in float32:
both compute under autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.training.losses import PretrainLoss
from models.training.parallelize import Processes, balance_experts, clip_gradients, sync_gradients
from models.training.pretrain_config import PretrainConfig
from models.training.working_copies import WorkingCopies

# On CUDA the first of these that takes the shapes. cuDNN is the fastest on Hopper (benchmarks/training/step_speed.md).
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class TrainingStep:
    """Of a `PretrainLoss` that is sharded and whose optimiser's state is loaded already."""

    def __init__(
        self,
        loss: PretrainLoss,
        optimizer: torch.optim.AdamW,
        processes: Processes,
        config: PretrainConfig,
        *,
        bf16: bool,
    ) -> None:
        self.loss, self.optimizer, self.processes, self.bf16 = loss, optimizer, processes, bf16
        self.clip_norm = config.clip_norm
        alone = processes.world == config.accumulate == 1
        self.working = WorkingCopies(loss, optimizer, torch.bfloat16) if bf16 and alone else None

    def backward(self, parts: Sequence[dict[str, Tensor]], targets: Tensor) -> list[float]:
        """Gradients of the step's micro-batches; loss and each level's mean, over all processes.

        targets: how many the global batch has.
        """
        self.optimizer.zero_grad(set_to_none=True)
        kind, numbers = self.processes.device.partition(":")[0], []
        with sdpa_kernel(ATTENTION, set_priority=True) if kind == "cuda" else contextlib.nullcontext():
            for i, batch in enumerate(parts):
                sync_gradients(self.loss, i == len(parts) - 1)
                if self.working:
                    value, levels = self.working(batch, targets)
                else:
                    with torch.autocast(kind, torch.bfloat16, enabled=self.bf16):
                        value, levels = self.loss(batch, targets)
                value.backward()
                numbers.append(torch.cat([value.detach()[None], levels]))
        return self.processes.total(torch.stack(numbers).sum(0)).tolist()

    def clip(self) -> float:
        """Clip by norm; the norm before. Working copies are clipped as they are updated."""
        if self.working:
            return float(self.working.norm())
        return clip_gradients(list(self.loss.model.parameters()), self.clip_norm, self.processes)

    def update(self) -> list[list[float]]:
        """Optimiser step, then every MoE's bias; the loads of its experts, a list a layer."""
        if self.working:
            self.working.step(self.clip_norm)
        else:
            self.optimizer.step()
        return balance_experts(self.loss.model, self.processes)
