"""Which ways of our own a model may compute in: each gives what plain PyTorch gives, and runs where its shapes allow.

    use_kernels(model, Kernels(few_queries=True))

A choice of speed, not of the model: it is no part of OneRecConfig and is not saved. What each is worth:
benchmarks/training/step_speed.md, whose program turns them off one by one.
"""

from __future__ import annotations

import dataclasses

from torch import nn

MOST_PAIRS = 3  # of keys and values that `attend_few` takes
LONGEST_ROW = 16384  # that `row_log_sum_exp` takes, a power of two


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels:
    """In training only, but for `inference`. `few_queries` is faster alone, but hardly in a whole step: it is off."""

    sorted_gradient: bool = True  # of looked-up rows, on CUDA: a sum over sorted indices, no atomics (embedding.py)
    event_lookups: bool = True  # all features of an event in one kernel a column, on CUDA (event_kernels.py)
    few_queries: bool = False  # a few queries over long keys, on CUDA in half precision (attention_kernels.py)
    output_kept: bool = True  # LeakyReLU keeps its output for the backward, and not its input (layers.py)
    inference: bool = True  # attention without gradient, on CUDA in half precision (inference_kernels.py)


class UsesKernels:
    """A module that asks `self.kernels` before it computes."""

    kernels = Kernels()


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Tell every part of the model; before it is compiled."""
    for module in model.modules():
        if isinstance(module, UsesKernels):
            module.kernels = kernels
