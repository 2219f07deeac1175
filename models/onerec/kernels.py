"""The router of the experts as one Triton kernel, for serving in bfloat16 on CUDA.

    gate_NK, chosen_NK = route(x_ND, router_ED, bias_E, k)

A `triton_op` with plain pointers, so that torch.compile, torch.export and AOTInductor take it. Products of bfloat16 are
exact in float32, where they are summed: what the plain router computes, without a float32 copy of x. Only sigmoid
affinities (DeepSeek-V3's). Imported only where CUDA is used; `TRITON_INTERPRET=1` runs it on a CPU, slowly
(tests/models/onerec/test_kernels.py).

Legend: N tokens, K experts a token, E experts, D model width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS, DEPTH, WARPS = 64, 64, 4
NEVER = tl.constexpr(-1e30)  # below every real score


@triton.jit
def _route(
    x_ptr, router_ptr, bias_ptr, gate_ptr, chosen_ptr, N,
    D: tl.constexpr, E: tl.constexpr, K: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The K largest of sigmoid(x router) + bias, first one first; gates are the sigmoids, normalised over them."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e, d = tl.arange(0, EXPERTS), tl.arange(0, DEPTH)
    acc = tl.zeros((ROWS, EXPERTS), tl.float32)
    for k in range(0, D, DEPTH):
        inside = k + d < D
        x = tl.load(x_ptr + n[:, None] * D + k + d[None, :], mask=(n < N)[:, None] & inside[None, :], other=0.0)
        w = tl.load(router_ptr + e[None, :] * D + k + d[:, None], mask=(e < E)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(x, w, acc)
    affinity = tl.sigmoid(acc)
    bias = tl.load(bias_ptr + e, mask=e < E, other=0.0)
    score = tl.where((e < E)[None, :], affinity + bias[None, :], NEVER)
    total, left = tl.zeros((ROWS,), tl.float32), score
    for _j in tl.static_range(K):
        hit = e[None, :] == tl.argmax(left, 1)[:, None]
        total += tl.sum(tl.where(hit, affinity, 0.0), 1)
        left = tl.where(hit, NEVER, left)
    for j in tl.static_range(K):
        best = tl.argmax(score, 1)
        hit = e[None, :] == best[:, None]
        tl.store(chosen_ptr + n * K + j, best.to(tl.uint8), mask=n < N)
        tl.store(gate_ptr + n * K + j, tl.sum(tl.where(hit, affinity, 0.0), 1) / total, mask=n < N)
        score = tl.where(hit, NEVER, score)


@triton_op("onerec::route", mutates_args=())
def route(x_ND: Tensor, router_ED: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Gates float32 [N, K] and chosen experts uint8 [N, K]."""
    (N, D), E = x_ND.shape, router_ED.shape[0]
    gate_NK, chosen_NK = x_ND.new_empty(N, k, dtype=torch.float32), x_ND.new_empty(N, k, dtype=torch.uint8)
    wrap_triton(_route)[(_up(N, ROWS),)](
        x_ND, router_ED, bias_E, gate_NK, chosen_NK, N, D, E, k, _power(E), ROWS, DEPTH, num_warps=WARPS
    )
    return gate_NK, chosen_NK


def _up(n: int, size: int) -> int:
    """Blocks of `size` that hold n; for an export's symbolic n too."""
    return (n + size - 1) // size


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())
