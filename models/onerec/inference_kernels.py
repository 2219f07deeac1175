"""Triton kernels of a request without gradient: attention under a mask or over a handful of pairs, log-sum-exp.

    out_BTHd = attend_masked(q_BHTd, k_BHSd, v_BHSd, mask_BS)    # half precision, CUDA
    out_BMHd = attend_few(q_BMHd, [k_BMHd, ...], [v_BMHd, ...])
    out_N = row_log_sum_exp(x_NK)                                # K a power of two, at most LONGEST_ROW

A general attention kernel takes a mask of any form, numbers to add to every score [B, H, T, S]; here a key's one number
is read beside the key. And it works in blocks of 64 keys, where a beam's own prefix has three: plain arithmetic
that a compiler spreads over several kernels, each of which reads the queries again. What both are worth:
benchmarks/serving/gpu_program.md. `TRITON_INTERPRET=1` runs them on a CPU, slowly; tests do.

Legend: B users, T queries, S keys, M beams, H heads, d head width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.onerec.kernels import MOST_PAIRS

# Of the fastest on two cards (benchmarks/serving/gpu_attention.md), for more than 128 queries and for up to 128.
MANY = {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3}
FEW = {"QUERIES": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3}
ROWS = 16  # of queries with their pairs, and one head, in one program
LOG2_E = 1.4426950408889634
NEVER = -1e30  # a masked key's score: finite, so that a block of masked keys alone stays defined; later ones undo it


@triton.jit
def _attend_masked(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, scale, T, S, H, q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, NEVER: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    query, key, d = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    real = (query < T)[:, None]
    q = tl.load(q_ptr + b * q_b + h * q_h + query[:, None] * q_t + d[None, :], mask=real, other=0.0)
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    bias_ptr += b * S
    largest = tl.full((QUERIES,), NEVER, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    for first in range(0, S, KEYS):
        at = first + key
        held = at < S
        bias = tl.load(bias_ptr + at, mask=held, other=NEVER)
        k = tl.load(k_ptr + at[:, None] * k_s + d[None, :], mask=held[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias[None, :]
        new = tl.maximum(largest, tl.max(score, 1))
        p = tl.exp2(score - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + at[:, None] * v_s + d[None, :], mask=held[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        largest = new
    to = out_ptr + ((b * T + query[:, None]) * H + h) * WIDTH + d[None, :]
    tl.store(to, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=real)


def attend_masked(q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask_BS: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys whose mask is True: [B, T, H, d].

    Of a user without any such key the result is the mean of all values, and means nothing.
    """
    # As numbers, one addition a score (single bytes were as fast); all layers share them, once compiled.
    bias_BS = torch.zeros(mask_BS.shape, device=mask_BS.device).masked_fill(~mask_BS, NEVER)
    return attend_biased(q_BHTd, k_BHSd, v_BHSd, bias_BS)


@torch.library.custom_op("onerec::attend_biased", mutates_args=())
def attend_biased(q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, bias_BS: Tensor) -> Tensor:
    """The kernel; `bias_BS`, float32, is added to a key's scores."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTd, k_BHSd, v_BHSd))
    B, H, T, d = q.shape
    out = q.new_empty(B, T, H, d)
    blocks = FEW if T <= 128 else MANY
    _attend_masked[(triton.cdiv(T, blocks["QUERIES"]), B * H)](
        q, k, v, bias_BS.contiguous(), out, d**-0.5 * LOG2_E, T, k.shape[2], H,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], WIDTH=d, NEVER=NEVER, **blocks,
    )  # fmt: skip
    return out


@attend_biased.register_fake
def _(q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, bias_BS: Tensor) -> Tensor:
    B, H, T, d = q_BHTd.shape
    return q_BHTd.new_empty(B, T, H, d)


@triton.jit
def _attend_few(
    q_ptr, k0_ptr, v0_ptr, k1_ptr, v1_ptr, k2_ptr, v2_ptr, out_ptr, scale, N, M, b0, m0, b1, m1, b2, m2,
    H: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    real, b, m = (row < N)[:, None], (row // M).to(tl.int64), row % M
    at = row.to(tl.int64)[:, None] * (H * WIDTH) + d[None, :]
    q = tl.load(q_ptr + at, mask=real, other=0.0).to(tl.float32) * scale
    place = (b * b0 + m * m0)[:, None] + d[None, :]
    s0 = tl.sum(q * tl.load(k0_ptr + place, mask=real, other=0.0).to(tl.float32), 1)
    largest, s1, s2 = s0, s0, s0
    if PAIRS > 1:
        place1 = (b * b1 + m * m1)[:, None] + d[None, :]
        s1 = tl.sum(q * tl.load(k1_ptr + place1, mask=real, other=0.0).to(tl.float32), 1)
        largest = tl.maximum(largest, s1)
    if PAIRS > 2:
        place2 = (b * b2 + m * m2)[:, None] + d[None, :]
        s2 = tl.sum(q * tl.load(k2_ptr + place2, mask=real, other=0.0).to(tl.float32), 1)
        largest = tl.maximum(largest, s2)
    p = tl.exp2(s0 - largest)
    total = p
    y = p[:, None] * tl.load(v0_ptr + place, mask=real, other=0.0).to(tl.float32)
    if PAIRS > 1:
        p = tl.exp2(s1 - largest)
        total += p
        y += p[:, None] * tl.load(v1_ptr + place1, mask=real, other=0.0).to(tl.float32)
    if PAIRS > 2:
        p = tl.exp2(s2 - largest)
        total += p
        y += p[:, None] * tl.load(v2_ptr + place2, mask=real, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (y / total[:, None]).to(out_ptr.dtype.element_ty), mask=real)


@torch.library.custom_op("onerec::attend_few", mutates_args=())
def attend_few(q_BMHd: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Each row of q attends to one key of each pair, [B, M, H, d] or, for all M, [B, 1, H, d]: [B, M, H, d]."""
    q = q_BMHd.contiguous()
    B, M, H, d = q.shape
    pairs = [(k.contiguous(), v.contiguous()) for k, v in zip(keys, values)]
    steps = [(k.stride(0), k.stride(1) if k.shape[1] > 1 else 0) for k, _ in pairs]
    spare = MOST_PAIRS - len(pairs)
    out = torch.empty_like(q)
    _attend_few[(triton.cdiv(B * M, ROWS), H)](
        q, *(x for pair in [*pairs, *[pairs[0]] * spare] for x in pair), out, d**-0.5 * LOG2_E, B * M, M,
        *(x for step in [*steps, *[steps[0]] * spare] for x in step), H=H, WIDTH=d, PAIRS=len(pairs), ROWS=ROWS,
    )  # fmt: skip
    return out


@attend_few.register_fake
def _(q_BMHd: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    return q_BMHd.new_empty(q_BMHd.shape)


@triton.jit
def _row_log_sum_exp(x_ptr, out_ptr, K: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    x = tl.load(x_ptr + n * K + tl.arange(0, K)).to(tl.float32)
    largest = tl.max(x, 0)
    tl.store(out_ptr + n, largest + tl.log(tl.sum(tl.exp(x - largest), 0)))


@torch.library.custom_op("onerec::row_log_sum_exp", mutates_args=())
def row_log_sum_exp(x_NK: Tensor) -> Tensor:
    """log(sum(exp(x))) of each row, in float32 [N]; a row is read once."""
    x_NK = x_NK.contiguous()
    out = x_NK.new_empty(x_NK.shape[0], dtype=torch.float32)
    _row_log_sum_exp[(x_NK.shape[0],)](x_NK, out, K=x_NK.shape[1], num_warps=8)
    return out


@row_log_sum_exp.register_fake
def _(x_NK: Tensor) -> Tensor:
    return x_NK.new_empty(x_NK.shape[0], dtype=torch.float32)
