"""The training step that step_speed times: model, optimiser, compilation, and synthetic batches of full histories.

Legend: B users.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.features import DURATION_BUCKETS, GAP_BUCKETS, LABEL_STATES, PLAY_BUCKETS
from models.onerec.kernels import use_kernels
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.training.losses import ntp_loss
from models.training.working_copies import WorkingCopies


class Loss(nn.Module):
    """batch -> NTP loss, by other parameters than the model's own where they are given."""

    def __init__(self, model: OneRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], parameters: dict[str, Tensor] | None = None) -> Tensor:
        if parameters is not None:
            return torch.func.functional_call(self, parameters, (batch,))
        z, mask = self.model.encode(batch)
        return ntp_loss(self.model, batch["targets"], batch["target_mask"].float(), z, mask)[0]


class Step(nn.Module):
    """The loss as one module to compile, computed in `dtype` from float32 parameters, whose gradients are float32."""

    def __init__(self, model: OneRec, dtype: torch.dtype) -> None:
        super().__init__()
        self.loss, self.dtype = Loss(model), dtype

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        if self.dtype == torch.float32:
            return self.loss(batch)
        cast = {name: p.to(self.dtype) for name, p in self.loss.named_parameters()}
        return torch.func.functional_call(self.loss, cast, (batch,))


def synthetic_batch(c: OneRecConfig, size: int, targets: int, lengths: str, seed: int) -> dict[str, Tensor]:
    """Random integers in the tables' ranges. `lengths`: "full", "masked" (full, but under a mask), or "mixed"."""
    rng = np.random.default_rng(seed)
    limits = (c.items, c.author_buckets, c.tag_buckets, GAP_BUCKETS, PLAY_BUCKETS, DURATION_BUCKETS, LABEL_STATES)
    batch = {"static": torch.from_numpy(rng.integers(0, c.static_buckets, (size, c.static_features)))}
    for name, length in (("short", c.short_len), ("positive", c.positive_len), ("lifelong", c.lifelong_len)):
        columns = [rng.integers(0, n, (size, length)) for n in limits]
        batch[name] = torch.from_numpy(np.stack(columns, -1))
        if lengths != "full":  # mixed: log-uniform, so that most users have far less than the longest
            own = np.exp(rng.uniform(0, np.log(length), size)) if lengths == "mixed" else np.full(size, length)
            batch[f"{name}_mask"] = torch.from_numpy(np.arange(length)[None] >= length - own[:, None])
    batch["targets"] = torch.from_numpy(rng.integers(0, c.items, (size, targets)))
    batch["target_mask"] = torch.ones(size, targets, dtype=torch.bool)
    return batch


def optimizer_of(model: nn.Module, cuda: bool, lr_sparse: float = 1e-4, lr_dense: float = 1e-4) -> torch.optim.AdamW:
    """AdamW as in pre-training: tables without weight decay, one fused kernel over all parameters."""
    sparse = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) in sparse], "lr": lr_sparse, "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if id(p) not in sparse], "lr": lr_dense},
    ]
    for group in groups:
        group["base_lr"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.05, fused=cuda)


class Trainer:
    """A model, its optimiser and the compiled step."""

    def __init__(self, config: OneRecConfig, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        with torch.device(args.device):
            sid = torch.randint(config.codebook_size, (config.items, config.levels))
            self.model = OneRec(config, sid).train()
        use_kernels(self.model, args.kernels)
        self.optimizer = optimizer_of(self.model, args.device == "cuda")
        self.autocast = args.precision == "autocast"
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        self.working: WorkingCopies | None = None
        step: nn.Module = Step(self.model, dtype)
        if args.working_copies:
            step = Loss(self.model)
            self.working = WorkingCopies(step, self.optimizer, dtype)
        self.step = compiled(step, args) if args.compile else step
        self.device = args.device

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """One training step; the loss stays on the device."""
        if self.working:
            loss = self.step(batch, self.working.parameters)
            loss.backward()
            self.working.step(1.0)
        else:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                loss = self.step(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        for module in self.model.modules():
            if isinstance(module, MoE):
                module.balance()
        return loss.detach()


def compiled(step: nn.Module, args: argparse.Namespace) -> Callable:
    """The compiled step. With a lock file it waits for its turn on the device when it is ready to run, so that several
    variants compile side by side and are measured one after another."""
    dynamic = None if args.lengths == "mixed" else False
    if not args.lock:
        return torch.compile(step, dynamic=dynamic)
    import fcntl

    from torch._functorch import config as functorch
    from torch._inductor.compile_fx import compile_fx

    functorch.force_non_lazy_backward_lowering = True
    held = args.lock.open("w")

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        done = compile_fx(graph, inputs)
        fcntl.flock(held, fcntl.LOCK_EX)
        return done

    return torch.compile(step, dynamic=dynamic, backend=backend)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
