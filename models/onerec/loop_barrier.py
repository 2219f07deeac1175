"""Compile for CUDA with a barrier that PyTorch's compiler leaves out, up to 2.13 at least.

    with loop_barriers():
        step(...)                       # torch.compile compiles at the first call, the backward at its first

A reduction over long rows is one Triton kernel with two loops. What the first loop stores, the second may load again,
and nothing makes its warps wait for each other: with some of the tile sizes that the compiler tries, one warp reads
what another has not written yet (pytorch/pytorch#190517). It stands where gradients on an H200 were some hundred times
too large, in the backward of an RMSNorm, in some processes and not in others: docs/decisions/quality.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch._functorch.config
import torch._inductor.config
from torch._inductor.codegen.triton import TritonKernel

BARRIER = "tl.debug_barrier()"


@contextlib.contextmanager
def loop_barriers() -> Iterator[None]:
    """What is compiled inside waits between the loops. Not for several threads at once."""
    load = TritonKernel.load

    def load_after_barrier(kernel: TritonKernel, name: str, index):
        """`invalidated_stores` are the buffers stored by a loop that has ended; its text stands in `body` by then."""
        if name in kernel.cse.invalidated_stores:
            kernel.body.writeline(BARRIER)
        return load(kernel, name, index)

    TritonKernel.load = load_after_barrier  # type: ignore[assignment, method-assign]
    # Code that was kept from a compilation without barriers must not be found.
    graphs = torch._inductor.config.patch({"fx_graph_cache": False})
    gradients = torch._functorch.config.patch({"enable_autograd_cache": False})
    try:
        with graphs, gradients:
            yield
    finally:
        TritonKernel.load = load  # type: ignore[method-assign]
