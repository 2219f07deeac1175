"""The Triton kernels of serving against the plain modules, interpreted on a CPU. Skipped where Triton is not installed.

In float16: the interpreter multiplies bfloat16 wrongly (Triton 3.6). benchmarks/serving/gpu_kernels.py compares them on
a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from models.onerec.kernels import _attention, attention, experts, route
from models.onerec.moe import MoE


@pytest.mark.parametrize(("tokens", "count", "k"), [(300, 24, 2), (1, 8, 2), (7, 24, 4)])
def test_experts(tokens, count, k):
    torch.manual_seed(0)
    moe = MoE(64, count, k, 192, 0.0).eval().half()
    moe.bias_E = torch.randn(count) * 0.3
    x = torch.randn(tokens, 64).half()
    with torch.no_grad():
        gate, chosen = moe.route(x)
        own_gate, own_chosen = route(x, moe.router.weight, moe.bias_E, k)
        found = experts(x, moe.router.weight, moe.bias_E, moe.gate_EDF, moe.up_EDF, moe.down_EFD, k)
        wanted = moe.float()(x.float())
    assert torch.equal(own_chosen.long(), chosen)
    torch.testing.assert_close(own_gate, gate)
    torch.testing.assert_close(found.float(), wanted, atol=0.01, rtol=0.01)


@pytest.mark.parametrize(("queries", "keys"), [(5, 1), (130, 70), (128, 200)])
def test_attention(queries, keys):
    torch.manual_seed(1)
    q = torch.randn(2, queries, 3, 32).transpose(1, 2).half()
    k, v = (torch.randn(2, keys, 3, 32).transpose(1, 2).half() for _ in range(2))
    mask = torch.rand(2, keys) < 0.6
    mask[0, : keys // 2] = False
    mask[:, -1] = True
    wanted = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask[:, None, None])
    torch.testing.assert_close(attention(q, k, v, mask).float(), wanted, atol=0.005, rtol=0.005)
    assert _attention(q, k, v, mask).is_contiguous()
