"""Triton kernels: a few queries a user attend to that user's long run of keys, forward and backward.

    out_BQHd = read(q_BQHd, kv_S2Hd, slot_2Hd, starts)           # bfloat16, CUDA; differentiable

The lifelong QFormer (128 queries, 2001 keys) and the decoder's cross-attention (3 tokens, 405 keys) are of this kind.
General attention kernels split the keys over programs in the backward pass: with one tile of queries each of them has a
single step to do, and the queries' gradient is summed through memory. Here one program holds all queries of a user and
head and streams over the keys once: every gradient is written once, nothing is summed in memory and the result is the
same in every run. Gradients of keys and values share one buffer, so that one product takes them back.

`slot_2Hd` are key and value of a learned slot that every user attends to; it stands for the first row of each user.
`TRITON_INTERPRET=1` runs both on a CPU, slowly; tests do. Imported only where CUDA is used.

Legend: B users, Q queries a user, S keys of all users end to end, H heads, d head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD = {"KEYS": 128, "num_warps": 8, "num_stages": 3}  # the fastest shapes in benchmarks/training/step_speed.md
BACKWARD = {"KEYS": 64, "num_warps": 8, "num_stages": 3}
FEW = {"KEYS": 64, "num_warps": 4, "num_stages": 2}  # of up to 32 queries, both ways
LOG2_E = 1.4426950408889634


@triton.jit
def _forward(
    q_ptr, kv_ptr, slot_ptr, out_ptr, lse_ptr, starts_ptr, scale, Q, H: tl.constexpr,
    QUERIES: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    begin, end = tl.load(starts_ptr + b).to(tl.int64), tl.load(starts_ptr + b + 1).to(tl.int64)
    query, d, key = tl.arange(0, QUERIES), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    real = query < Q
    at = (b * Q + query[:, None]) * (H * WIDTH) + h * WIDTH + d[None, :]
    q = tl.load(q_ptr + at, mask=real[:, None], other=0.0)
    if SLOT:
        k0 = tl.load(slot_ptr + h * WIDTH + d).to(tl.float32)
        v0 = tl.load(slot_ptr + (H + h) * WIDTH + d).to(tl.float32)
        largest = tl.sum(q.to(tl.float32) * k0[None, :], 1) * scale
        total = tl.full((QUERIES,), 1.0, tl.float32)
        acc = tl.zeros((QUERIES, WIDTH), tl.float32) + v0[None, :]
        begin += 1
    else:
        largest = tl.full((QUERIES,), float("-inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    k_ptr = kv_ptr + begin * (2 * H * WIDTH) + h * WIDTH
    length = (end - begin).to(tl.int32)
    for first in range(0, length, KEYS):
        held = first + key < length
        place = (first + key)[:, None] * (2 * H * WIDTH) + d[None, :]
        k = tl.load(k_ptr + place, mask=held[:, None], other=0.0)
        score = tl.where(held[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        new = tl.maximum(largest, tl.max(score, 1))
        p = tl.exp2(score - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(k_ptr + H * WIDTH + place, mask=held[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        largest = new
    tl.store(out_ptr + at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=real[:, None])
    tl.store(lse_ptr + (b * H + h) * Q + query, largest + tl.log2(total), mask=real)


@triton.jit
def _backward(
    q_ptr, kv_ptr, slot_ptr, out_ptr, lse_ptr, starts_ptr, grad_ptr, dq_ptr, dkv_ptr, dslot_ptr, scale, Q,
    H: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    begin, end = tl.load(starts_ptr + b).to(tl.int64), tl.load(starts_ptr + b + 1).to(tl.int64)
    query, d, key = tl.arange(0, QUERIES), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    real = query < Q
    at = (b * Q + query[:, None]) * (H * WIDTH) + h * WIDTH + d[None, :]
    q = tl.load(q_ptr + at, mask=real[:, None], other=0.0)
    grad = tl.load(grad_ptr + at, mask=real[:, None], other=0.0)
    out = tl.load(out_ptr + at, mask=real[:, None], other=0.0)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    # A query that is none has a gradient of zero, so its probabilities may be anything finite.
    lse = tl.load(lse_ptr + (b * H + h) * Q + query, mask=real, other=0.0)
    dq = tl.zeros((QUERIES, WIDTH), tl.float32)
    if SLOT:
        k0 = tl.load(slot_ptr + h * WIDTH + d).to(tl.float32)
        v0 = tl.load(slot_ptr + (H + h) * WIDTH + d).to(tl.float32)
        p0 = tl.exp2(tl.sum(q.to(tl.float32) * k0[None, :], 1) * scale - lse)
        ds0 = p0 * (tl.sum(grad.to(tl.float32) * v0[None, :], 1) - delta)
        dq += ds0[:, None] * k0[None, :]
        own = dslot_ptr + b * (2 * H * WIDTH) + h * WIDTH + d
        tl.store(own, tl.sum(ds0[:, None] * q.to(tl.float32), 0) * (scale / 1.4426950408889634))
        tl.store(own + H * WIDTH, tl.sum(p0[:, None] * grad.to(tl.float32), 0))
        none = tl.zeros((WIDTH,), dkv_ptr.dtype.element_ty)
        tl.store(dkv_ptr + begin * (2 * H * WIDTH) + h * WIDTH + d, none)
        tl.store(dkv_ptr + begin * (2 * H * WIDTH) + (H + h) * WIDTH + d, none)
        begin += 1
    k_ptr = kv_ptr + begin * (2 * H * WIDTH) + h * WIDTH
    dk_ptr = dkv_ptr + begin * (2 * H * WIDTH) + h * WIDTH
    length = (end - begin).to(tl.int32)
    for first in range(0, length, KEYS):
        row = (first + key < length)[:, None]
        held = (first + key < length)[None, :]
        place = (first + key)[:, None] * (2 * H * WIDTH) + d[None, :]
        k = tl.load(k_ptr + place, mask=row, other=0.0)
        v = tl.load(k_ptr + H * WIDTH + place, mask=row, other=0.0)
        p = tl.where(held, tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None]), 0.0)
        dv = tl.dot(tl.trans(p.to(grad.dtype)), grad)
        tl.store(dk_ptr + H * WIDTH + place, dv.to(dkv_ptr.dtype.element_ty), mask=row)
        ds = (p * (tl.dot(grad, tl.trans(v)) - delta[:, None])).to(q.dtype)
        dk = tl.dot(tl.trans(ds), q) * (scale / 1.4426950408889634)
        tl.store(dk_ptr + place, dk.to(dkv_ptr.dtype.element_ty), mask=row)
        dq = tl.dot(ds, k, dq)
    dq *= scale / 1.4426950408889634
    tl.store(dq_ptr + at, dq.to(dq_ptr.dtype.element_ty), mask=real[:, None])


def _shape(q_BQHd: Tensor, large: dict[str, int]) -> dict[str, int]:
    """Constants of a launch."""
    Q, H, d = q_BQHd.shape[1:]
    queries = max(16, triton.next_power_of_2(Q))
    return {"H": H, "QUERIES": queries, "WIDTH": d, **(large if queries > 32 else FEW)}


@torch.library.custom_op("onerec::read_forward", mutates_args=())
def read_forward(q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Attention's result and log2 of the sum of exponentials [B, H, Q] float32. All inputs contiguous."""
    B, Q, H, d = q_BQHd.shape
    out = torch.empty_like(q_BQHd)
    lse_BHQ = q_BQHd.new_empty(B, H, Q, dtype=torch.float32)
    _forward[(B * H,)](
        q_BQHd, kv_S2Hd, slot_2Hd, out, lse_BHQ, starts, d**-0.5 * LOG2_E, Q, SLOT=slot_2Hd is not None,
        **_shape(q_BQHd, FORWARD),
    )  # fmt: skip
    return out, lse_BHQ


@read_forward.register_fake
def _(q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, starts: Tensor) -> tuple[Tensor, Tensor]:
    B, Q, H, _ = q_BQHd.shape
    return torch.empty_like(q_BQHd), q_BQHd.new_empty(B, H, Q, dtype=torch.float32)


@torch.library.custom_op("onerec::read_backward", mutates_args=())
def read_backward(
    gradient: Tensor, q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, starts: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, and of each user's slot [B, 2, H, d] float32 (empty without one)."""
    B, Q, H, d = q_BQHd.shape
    dq, dkv = torch.empty_like(q_BQHd), torch.empty_like(kv_S2Hd)
    dslot = q_BQHd.new_empty(B if slot_2Hd is not None else 0, 2, H, d, dtype=torch.float32)
    _backward[(B * H,)](
        q_BQHd, kv_S2Hd, slot_2Hd, out, lse, starts, gradient.contiguous(), dq, dkv, dslot, d**-0.5 * LOG2_E, Q,
        SLOT=slot_2Hd is not None, **_shape(q_BQHd, BACKWARD),
    )  # fmt: skip
    return dq, dkv, dslot


@read_backward.register_fake
def _(
    gradient: Tensor, q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, starts: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, H, d = q_BQHd.shape
    dslot = q_BQHd.new_empty(B if slot_2Hd is not None else 0, 2, H, d, dtype=torch.float32)
    return torch.empty_like(q_BQHd), torch.empty_like(kv_S2Hd), dslot


class Read(torch.autograd.Function):
    """The two operators as one differentiable function, which a compiler takes as it is."""

    @staticmethod
    def forward(ctx, q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, starts: Tensor) -> Tensor:
        out, lse = read_forward(q_BQHd, kv_S2Hd, slot_2Hd, starts)
        ctx.save_for_backward(q_BQHd, kv_S2Hd, slot_2Hd, starts, out, lse)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        dq, dkv, dslot = read_backward(gradient, *ctx.saved_tensors)
        slot = ctx.saved_tensors[2]
        return dq, dkv, None if slot is None else dslot.sum(0).to(slot.dtype), None


def read(q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, starts: Tensor) -> Tensor:
    """Each user's queries attend to rows starts[b]..starts[b + 1] of the keys and values: [B, Q, H, d].

    starts: int32 [B + 1]. With a slot, the first row of each user is a place for it: its own content is not read and
    gets a gradient of zero.
    """
    return Read.apply(
        q_BQHd.contiguous(), kv_S2Hd.contiguous(), slot_2Hd if slot_2Hd is None else slot_2Hd.contiguous(), starts
    )
