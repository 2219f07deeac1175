"""The barrier stands between the loop that stores and the loop that loads again; the compiler alone leaves it out."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch._inductor.codegen.triton import TritonKernel

from models.onerec.loop_barrier import BARRIER, loop_barriers


def written(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.models.onerec.code_for_cuda", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops_of(text: str) -> tuple[str, str, str]:
    """The kernel's first loop, what stands before its second, and that."""
    (kernel,) = re.findall(r"@triton\.jit\n(.*?)'''", text, re.DOTALL)
    first, second = re.findall(r"    for r0_offset in .*?(?=\n    \w)|    for r0_offset in .*", kernel, re.DOTALL)
    return first, kernel[kernel.index(first) + len(first) : kernel.index(second)], second


def test_a_barrier_stands_between_the_loops_and_nowhere_else() -> None:
    first, between, second = loops_of(written("--barriers"))
    (stored,) = re.findall(r"tl\.store\((\w+)", first)
    assert f"tl.load({stored} " in second  # what makes the barrier needed
    assert between.count(BARRIER) == 1 and BARRIER not in first + second


def test_the_compiler_leaves_it_out() -> None:
    """Once this fails, PyTorch has its own (pytorch/pytorch#190517), and `loop_barriers` can go."""
    assert BARRIER not in written()


def test_the_compiler_is_as_before_afterwards_whatever_happened() -> None:
    before, cached = TritonKernel.load, torch._inductor.config.fx_graph_cache
    with pytest.raises(ZeroDivisionError), loop_barriers():
        assert TritonKernel.load is not before and not torch._inductor.config.fx_graph_cache
        raise ZeroDivisionError
    assert TritonKernel.load is before and torch._inductor.config.fx_graph_cache == cached
