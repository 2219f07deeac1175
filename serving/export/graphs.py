"""CUDA graphs of all shapes, captured at warm-up and never after.

    graphs = Graphs(program, CudaRecorder())
    graphs.capture(8, inputs); graphs.freeze()
    outputs = graphs(8, inputs)       # the graph's own memory: copy what must outlive the next call
    graphs.captures                   # how many were made; after freeze() it cannot grow

A capture in the middle of traffic stops every other request for its duration, so a missing shape is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Recorder(Protocol):
    """Makes a replayable copy of a function: it reads `inputs` and writes `outputs`, the same memory every time."""

    def record(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], tuple[Tensor, ...]]: ...


class CudaRecorder:
    """torch.cuda.CUDAGraph; all graphs share one pool of memory, because only one of them runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):  # libraries choose and load their kernels outside the capture
            for _ in range(2):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, pool=self.pool):
            outputs = function(*inputs)
        return graph.replay, outputs


class Graphs:
    """One recorded function a key (a batch and beam bucket). Not safe for several threads: the memory is shared."""

    def __init__(self, function: Function, recorder: Recorder) -> None:
        self.function, self.recorder = function, recorder
        self.captures, self.frozen = 0, False
        self._graphs: dict[Hashable, tuple[list[Tensor], Callable[[], None], tuple[Tensor, ...]]] = {}

    def capture(self, key: Hashable, inputs: Sequence[Tensor]) -> None:
        """Record the function for inputs of these shapes. RuntimeError once frozen; a known key is kept."""
        if self.frozen:
            raise RuntimeError(
                f"graphs are frozen after warm-up and {key} is not among {sorted(map(str, self._graphs))}"
            )
        if key not in self._graphs:
            own = [x.clone() for x in inputs]
            self._graphs[key] = (own, *self.recorder.record(self.function, own))
            self.captures += 1

    def freeze(self) -> None:
        """From here on no graph is made."""
        self.frozen = True

    def __call__(self, key: Hashable, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copy the inputs in and replay. A key without a graph is recorded, or refused once frozen."""
        if key not in self._graphs:
            self.capture(key, inputs)
        own, replay, outputs = self._graphs[key]
        for to, x in zip(own, inputs, strict=True):
            to.copy_(x, non_blocking=True)
        replay()
        return outputs
