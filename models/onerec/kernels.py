"""Triton kernels of serving in bfloat16 on CUDA: routing, experts with SwiGLU inside the product, masked attention.

    y_ND = experts(x_ND, router_ED, bias_E, gate_EDF, up_EDF, down_EFD, k)
    y_BHTd = attention(q_BHTd, k_BHSd, v_BHSd, mask_BS)

Written as `triton_op`s, so that torch.compile, torch.export and AOTInductor take them, and with plain pointers, which
all three can pass. Sums are float32. Only sigmoid affinities (DeepSeek-V3's) are routed here. Imported only where
CUDA is used; `TRITON_INTERPRET=1` runs them on a CPU, slowly (tests/models/onerec/test_kernels.py).

Legend: N tokens, K experts a token, R = N K rows sorted by expert, E experts, D model width, F expert width, B users,
H heads, T queries, S keys, d head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS, DEPTH, GROUP = 128, 64, 8  # rows of a tile, depth of a step, row tiles that share columns in the L2 cache
SWIGLU_COLS, DOWN_COLS = 128, 256  # the first keeps two accumulators, gate and up
WARPS, STAGES = 8, 3
QUERIES, KEYS, ATTENTION_WARPS, ATTENTION_STAGES = 128, 64, 8, 3
NEVER = tl.constexpr(
    -1e30
)  # a score that no real one undercuts; finite, so that a block without a valid key makes no NaN


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


@triton.jit
def _tile(ends_ptr, program, columns, E: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Which tile a program computes: expert, first row, end of the expert's rows, column tile; expert E: none."""
    first = program // (GROUP * columns) * GROUP
    inside = program % (GROUP * columns)
    tile, column = first + inside % GROUP, inside // GROUP
    e = tl.arange(0, EXPERTS)
    end = tl.load(ends_ptr + e, mask=e < E, other=0)
    start = tl.load(ends_ptr + e - 1, mask=(e > 0) & (e < E), other=0)
    tiles = tl.where(e < E, (end - start + ROWS - 1) // ROWS, 0)
    upto = tl.cumsum(tiles, 0)
    expert = tl.sum(tl.where((upto <= tile) & (e < E), 1, 0), 0)
    own = e == expert
    row = tl.sum(tl.where(own, start, 0), 0) + (tile - tl.sum(tl.where(own, upto - tiles, 0), 0)) * ROWS
    return expert, row, tl.sum(tl.where(own, end, 0), 0), column


@triton.jit
def _swiglu(
    x_ptr, order_ptr, gate_ptr, up_ptr, ends_ptr, out_ptr,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, K: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """silu(x gate) * (x up) of one tile of an expert's rows; the rows of x are gathered as they are read."""
    expert, row, end, column = _tile(ends_ptr, tl.program_id(0), tl.cdiv(F, COLS), E, EXPERTS, ROWS, GROUP)
    if expert < E:
        r, f, d = row + tl.arange(0, ROWS), column * COLS + tl.arange(0, COLS), tl.arange(0, DEPTH)
        token = tl.load(order_ptr + r, mask=r < end, other=0) // K
        x_at = x_ptr + token[:, None] * D + d[None, :]
        w_at = expert.to(tl.int64) * D * F + d[:, None] * F + tl.where(f < F, f, 0)[None, :]
        gate_at, up_at = gate_ptr + w_at, up_ptr + w_at
        gate, up = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32)
        for _k in range(0, D, DEPTH):
            x = tl.load(x_at)
            gate = tl.dot(x, tl.load(gate_at), gate)
            up = tl.dot(x, tl.load(up_at), up)
            x_at += DEPTH
            gate_at += DEPTH * F
            up_at += DEPTH * F
        hidden = gate * tl.sigmoid(gate) * up
        at = out_ptr + r.to(tl.int64)[:, None] * F + f[None, :]
        tl.store(at, hidden.to(out_ptr.dtype.element_ty), mask=(r < end)[:, None] & (f < F)[None, :])


@triton.jit
def _down(
    hidden_ptr, order_ptr, weight_ptr, down_ptr, ends_ptr, out_ptr,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """weight * (hidden down) of one tile; every row is written to its token's place."""
    expert, row, end, column = _tile(ends_ptr, tl.program_id(0), tl.cdiv(D, COLS), E, EXPERTS, ROWS, GROUP)
    if expert < E:
        r, c, f = row + tl.arange(0, ROWS), column * COLS + tl.arange(0, COLS), tl.arange(0, DEPTH)
        h_at = hidden_ptr + tl.where(r < end, r, row).to(tl.int64)[:, None] * F + f[None, :]
        w_at = down_ptr + expert.to(tl.int64) * D * F + f[:, None] * D + tl.where(c < D, c, 0)[None, :]
        acc = tl.zeros((ROWS, COLS), tl.float32)
        for _k in range(0, F, DEPTH):
            acc = tl.dot(tl.load(h_at), tl.load(w_at), acc)
            h_at += DEPTH
            w_at += DEPTH * D
        place = tl.load(order_ptr + r, mask=r < end, other=0)
        acc *= tl.load(weight_ptr + place, mask=r < end, other=0.0)[:, None]
        at = out_ptr + place.to(tl.int64)[:, None] * D + c[None, :]
        tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(r < end)[:, None] & (c < D)[None, :])


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    T: tl.constexpr, S: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of queries of a head against all valid keys of its user; the softmax as the keys come."""
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    t, s, d = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    q = tl.load(q_ptr + b * q_b + h * q_h + t[:, None] * q_t + d[None, :], mask=(t < T)[:, None], other=0.0)
    largest = tl.full((QUERIES,), NEVER, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    for first in range(0, S, KEYS):
        key = first + s
        inside = key < S
        k = tl.load(k_ptr + b * k_b + h * k_h + key[None, :] * k_t + d[:, None], mask=inside[None, :], other=0.0)
        valid = inside & (tl.load(mask_ptr + b * S + key, mask=inside, other=0) != 0)
        score = tl.where(valid[None, :], tl.dot(q, k) * scale, NEVER)
        higher = tl.maximum(largest, tl.max(score, 1))
        p, shrink = tl.exp2(score - higher[:, None]), tl.exp2(largest - higher)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + b * v_b + h * v_h + key[:, None] * v_t + d[None, :], mask=inside[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        largest = higher
    at = out_ptr + (b * T + t[:, None]) * (H * WIDTH) + h * WIDTH + d[None, :]
    tl.store(at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=(t < T)[:, None])


@triton_op("onerec::route", mutates_args=())
def route(x_ND: Tensor, router_ED: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Gates float32 [N, K] and chosen experts uint8 [N, K]."""
    (N, D), E = x_ND.shape, router_ED.shape[0]
    gate_NK, chosen_NK = x_ND.new_empty(N, k, dtype=torch.float32), x_ND.new_empty(N, k, dtype=torch.uint8)
    wrap_triton(_route)[(_up(N, 64),)](
        x_ND, router_ED, bias_E, gate_NK, chosen_NK, N, D, E, k, _power(E), 64, 64, num_warps=4
    )
    return gate_NK, chosen_NK


@triton_op("onerec::swiglu", mutates_args=())
def swiglu(x_ND: Tensor, order_R: Tensor, ends_E: Tensor, gate_EDF: Tensor, up_EDF: Tensor, k: int) -> Tensor:
    """Hidden rows [R, F], sorted by expert."""
    R, (E, D, F) = order_R.shape[0], gate_EDF.shape
    hidden_RF = x_ND.new_empty(R, F)
    wrap_triton(_swiglu)[(_tiles(R, E) * _up(F, SWIGLU_COLS),)](
        x_ND, order_R, gate_EDF, up_EDF, ends_E, hidden_RF, D, F, E, k, _power(E),
        ROWS, SWIGLU_COLS, DEPTH, GROUP, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return hidden_RF


@triton_op("onerec::down", mutates_args=())
def down(hidden_RF: Tensor, order_R: Tensor, ends_E: Tensor, weight_R: Tensor, down_EFD: Tensor) -> Tensor:
    """Weighted outputs [R, D], in the order of the tokens: row n K + j is the j-th expert's of token n."""
    R, (E, F, D) = order_R.shape[0], down_EFD.shape
    y_RD = hidden_RF.new_empty(R, D)
    wrap_triton(_down)[(_tiles(R, E) * _up(D, DOWN_COLS),)](
        hidden_RF, order_R, weight_R, down_EFD, ends_E, y_RD, D, F, E, _power(E),
        ROWS, DOWN_COLS, DEPTH, GROUP, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return y_RD


@triton_op("onerec::attention", mutates_args=())
def _attention(q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask_BS: Tensor) -> Tensor:
    (B, H, T, d), S = q_BHTd.shape, k_BHSd.shape[2]
    out_BTHd = q_BHTd.new_empty(B, T, H, d)
    scale = d**-0.5 * 1.4426950408889634  # of exp2
    strides = [stride for x in (q_BHTd, k_BHSd, v_BHSd) for stride in x.stride()[:3]]
    wrap_triton(_attend)[(_up(T, QUERIES), B * H)](
        q_BHTd, k_BHSd, v_BHSd, mask_BS, out_BTHd, scale, *strides, T, S, H, d,
        QUERIES, KEYS, num_warps=ATTENTION_WARPS, num_stages=ATTENTION_STAGES,
    )  # fmt: skip
    return out_BTHd


def attention(q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask_BS: Tensor) -> Tensor:
    """Softmax attention [B, H, T, d]; mask: bool, True = may look, at least one key of each user."""
    return _attention(q_BHTd, k_BHSd, v_BHSd, mask_BS).transpose(1, 2)


def experts(
    x_ND: Tensor, router_ED: Tensor, bias_E: Tensor, gate_EDF: Tensor, up_EDF: Tensor, down_EFD: Tensor, k: int
) -> Tensor:
    """The K experts' weighted sum [N, D]."""
    gate_NK, chosen_NK = route(x_ND, router_ED, bias_E, k)
    # Eight bits are one pass of a radix sort, 64 are eight.
    expert_R, order_R = chosen_NK.flatten().sort(stable=True)
    every = torch.arange(len(bias_E), device=x_ND.device, dtype=torch.uint8)
    ends_E = torch.searchsorted(expert_R, every, right=True, out_int32=True)
    hidden_RF = swiglu(x_ND, order_R, ends_E, gate_EDF, up_EDF, k)
    return down(hidden_RF, order_R, ends_E, gate_NK.flatten(), down_EFD).unflatten(0, gate_NK.shape).sum(1)


def _up(n: int, size: int) -> int:
    """Blocks of `size` that hold n; for an export's symbolic n too."""
    return (n + size - 1) // size


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def _tiles(rows: int, experts: int) -> int:
    """Row tiles that can be needed: each expert may end in the middle of one; whole groups of them."""
    return _up(_up(rows, ROWS) + experts, GROUP) * GROUP
