"""The router's Triton kernel against the plain module, interpreted on a CPU. Skipped where Triton is not installed.

In float16: the interpreter multiplies bfloat16 wrongly (Triton 3.6). benchmarks/serving/gpu_kernels.py compares them on
a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from models.onerec.kernels import route
from models.onerec.moe import MoE


@pytest.mark.parametrize(("tokens", "count", "k"), [(300, 24, 2), (1, 8, 2), (7, 24, 4)])
def test_route(tokens, count, k):
    torch.manual_seed(0)
    moe = MoE(64, count, k, 192, 0.0).eval().half()
    moe.bias_E = torch.randn(count) * 0.3
    x = torch.randn(tokens, 64).half()
    with torch.no_grad():
        gate, chosen = moe.route(x)
        own_gate, own_chosen = route(x, moe.router.weight, moe.bias_E, k)
    assert torch.equal(own_chosen.long(), chosen)
    torch.testing.assert_close(own_gate, gate)
