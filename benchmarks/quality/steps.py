"""Training steps of fixed shapes, replayed as CUDA graphs: these models are small, and launching kernels is their time.

    steps = Steps(step, device)          # step(rows_BT) does everything from zeroed gradients to the optimiser's step
    steps(rows_BT)

A batch shape runs as it is for its first `WARM` times, then is captured once and replayed. Nothing in a step may read a
value back or depend on the content's shape, so batches come in few lengths (`data.LENGTHS`), targets that do not count
are ignored instead of cut out, and the learning rate is a tensor. On a CPU every step runs as it is: the same function,
so the same mathematics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

WARM = 3


class Steps:
    """Calls `step` with batches; on CUDA one graph a shape."""

    def __init__(self, step: Callable[[Tensor], None], device: torch.device) -> None:
        self.step, self.cuda = step, device.type == "cuda"
        self.seen: Counter[tuple[int, ...]] = Counter()
        self.graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, rows_BT: Tensor) -> None:
        if not self.cuda:
            self.step(rows_BT)
            return
        shape = tuple(rows_BT.shape)
        self.seen[shape] += 1
        if shape not in self.graphs and self.seen[shape] <= WARM:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.step(rows_BT)
            torch.cuda.current_stream().wait_stream(side)
            return
        if shape not in self.graphs:
            graph, static_BT = torch.cuda.CUDAGraph(), rows_BT.clone()
            with torch.cuda.graph(graph):
                self.step(static_BT)
            self.graphs[shape] = graph, static_BT
        graph, static_BT = self.graphs[shape]
        static_BT.copy_(rows_BT)
        graph.replay()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of every group; a captured step reads it from a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def adam(
    parameters, *, rate: float, weight_decay: float, decoupled: bool, device: torch.device
) -> torch.optim.Optimizer:
    """Adam (or AdamW, `decoupled`) with betas .9 and .98; on CUDA in the form that a graph can hold."""
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    cuda = device.type == "cuda"
    lr = torch.tensor(rate, device=device) if cuda else rate
    return kind(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=cuda, capturable=cuda)
