"""Follows a pre-training run: the curve for the report, a line every few seconds, TensorBoard event files.

meter = Meter(steps=480, say=print, events=Path("var/runs/2022-05-05/tensorboard"))
meter.step(step, levels=[...], targets=300, samples=128, flops=None, norm=0.7, rate=1e-3, loads=[[...]], waited=0.2)

tensorboard --logdir var/runs
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.flops import train_flops
from models.training.data import PATHWAYS

EVERY_S = 5.0
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L20": 119.5e12, "B200": 2250e12}  # dense bf16
POINTS = 100  # of the curve


class Meter:
    """FLOPs of the steps and a device whose peak is known give the MFU; without either it is left out.

    `kept` is what `state()` returned before a kill: the curve goes on where it was.
    """

    def __init__(
        self,
        *,
        steps: int,
        say: Callable[[str], None],
        events: Path | None = None,
        device: str = "cpu",
        processes: int = 1,
        kept: dict[str, Any] | None = None,
        start: int = 0,
    ) -> None:
        self.steps, self.say, self.device = steps, say, device
        kept = kept or {"curve": [], "recent": [], "targets": 0}
        self.curve, self.recent, self.targets = list(kept["curve"]), list(kept["recent"]), kept["targets"]
        self.begun = self.said = time.monotonic()
        self.samples, self.flops, self.waited, self.peak = 0, 0.0, 0.0, (device_peak(device) or 0.0) * processes
        self.before = self._counted()
        self.writer = None
        if events is not None:
            from torch.utils.tensorboard import SummaryWriter  # not needed to train

            self.writer = SummaryWriter(str(events), purge_step=start + 1)

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"curve": self.curve, "recent": self.recent, "targets": self.targets}

    def step(
        self,
        step: int,
        *,
        levels: list[float],
        targets: int,
        samples: int,
        flops: float | None,
        norm: float,
        rate: float,
        loads: list[list[float]],
        waited: float,
    ) -> None:
        """After step number `step` (from 0). `waited`: seconds so far that the loop stood still for data."""
        self.targets, self.samples, self.waited = self.targets + targets, self.samples + samples, waited
        self.flops += flops or 0.0
        self.recent.append([max(map(imbalance, loads), default=1.0), sum(levels), *levels])
        if len(self.recent) == max(1, self.steps // POINTS) or step == self.steps - 1:
            mean = np.mean(self.recent, 0).tolist()
            levels_of = {f"loss_c{i}": v for i, v in enumerate(mean[2:])}
            self.curve.append({"step": step + 1, "loss": mean[1], **levels_of, "expert_imbalance": mean[0]})
            self.recent = []
        if self.writer is not None:
            named = {"loss/all": sum(levels), **{f"loss/level_{i + 1}": v for i, v in enumerate(levels)}}
            named |= {"gradient_norm": norm, "learning_rate": rate, **self.speed(self.before)}
            named |= {f"expert_balance/layer_{i + 1}": imbalance(load) for i, load in enumerate(loads)}
            for name, value in named.items():
                self.writer.add_scalar(name, value, step + 1)
        if time.monotonic() - self.said > EVERY_S:
            self.say(self.line(step, levels, loads))
            self.said, self.before = time.monotonic(), self._counted()

    def line(self, step: int, levels: list[float], loads: list[list[float]]) -> str:
        """step 120/480  loss 9.31 (3.2 3.1 3.0)  512 samples/s  data-wait 0.4 %  experts 1.21  memory 1.1 GiB"""
        s = self.speed(self.before)
        parts = [
            f"step {step + 1}/{self.steps}",
            f"loss {sum(levels):.3f} ({' '.join(f'{v:.2f}' for v in levels)})",
            f"{s['samples_per_second']:,.0f} samples/s",
            *([f"MFU {s['mfu']:.1%}"] if "mfu" in s else []),
            f"data-wait {s['data_wait']:.1%}",
            *([f"experts {max(map(imbalance, loads)):.2f}"] if loads else []),
            f"memory {memory_bytes(self.device) / 2**30:.1f} GiB",
        ]
        return "  ".join(parts)

    def speed(self, since: tuple[float, ...] | None = None) -> dict[str, float]:
        """Samples/s, share of the time waited for data, and MFU where known; of this process as a whole, or `since` an
        earlier count: a line and TensorBoard say how fast it is now, the first steps' compiling left behind."""
        begun, *before = since or (self.begun, 0, 0.0, 0.0)
        now, *after = self._counted()
        samples, flops, waited = (b - a for a, b in zip(before, after))
        seconds = max(now - begun, 1e-9)
        mfu = {"mfu": flops / seconds / self.peak} if flops and self.peak else {}
        return {"samples_per_second": samples / seconds, "data_wait": min(1.0, waited / seconds), **mfu}

    def _counted(self) -> tuple[float, int, float, float]:
        return time.monotonic(), self.samples, self.flops, self.waited

    def close(self) -> dict[str, float]:
        """Flush the events; the run's speed and memory for the report."""
        if self.writer is not None:
            self.writer.close()
        return {**self.speed(), "seconds": time.monotonic() - self.begun, "peak_bytes": memory_bytes(self.device)}


def imbalance(load: list[float]) -> float:
    """Largest load over the mean: 1 is perfect, the number of experts is the worst."""
    return max(load) / max(sum(load) / len(load), 1e-9)


def memory_bytes(device: str) -> int:
    """Peak allocated on the device, or peak resident memory of the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_peak(device: str) -> float | None:
    """Dense bf16 FLOP/s of a card we know."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def counts_of(batch: dict[str, Tensor]) -> Tensor:
    """Targets, rows, and events of each pathway of a micro-batch, int64 [5]."""
    target_mask = batch["target_mask"]
    masks = [batch.get(f"{name}_mask", batch[name][..., 0] >= 0) for name in PATHWAYS]  # without a mask all are there
    rows = target_mask.new_tensor(len(batch["weight"]), dtype=torch.int64)
    return torch.stack([target_mask.sum(), rows, *(mask.sum() for mask in masks)])


def flops_of_row(config: OneRecConfig, device: str) -> Callable[[float, list[float]], float] | None:
    """FLOPs of a row, forward and backward, from its targets and its pathways' lengths; None where no MFU is shown."""
    if device_peak(device) is None:
        return None
    return lambda targets, lengths: train_flops(config, targets, (lengths[0], lengths[1], lengths[2]))
