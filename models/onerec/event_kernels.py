"""Triton kernels: rows of several tables side by side, and the gradient of every table as sums over sorted lookups.

    features_EF = lookups(index_ET, tables, columns)                # CUDA; differentiable

Table t's rows stand in the features from columns[t] on, and tables with the same column are summed (an item is three
code embeddings). A compiler makes of this one kernel that asks for every number which table it comes from, and copies
the gradient apart before each table's rows are summed. Here a row is written once, and the gradient is read
where it lies. Sums are taken in the order of the events, in pieces of at most PIECE lookups, whose sums are added in a
second pass: no atomics, the same result in every run, and a row that is looked up a million times is no queue.

`TRITON_INTERPRET=1` runs both on a CPU, slowly; tests do. Imported only where CUDA is used.

Legend: E events, T tables, F features' total width, R rows of a table, W width of a table, P pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 256  # lookups summed by one program
ELEMENTS = 8192  # of a tile that one program holds


@triton.jit
def _gather(
    index_ptr, stride, a_ptr, b_ptr, c_ptr, out_ptr, E, F, TABLES: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Rows of at most three tables, summed, into their columns of the features."""
    e = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real, w = e < E, tl.arange(0, W)
    row = tl.load(index_ptr + e * stride, mask=real, other=0)
    x = tl.load(a_ptr + row[:, None] * W + w[None, :]).to(tl.float32)
    if TABLES > 1:
        row = tl.load(index_ptr + e * stride + 1, mask=real, other=0)
        x += tl.load(b_ptr + row[:, None] * W + w[None, :]).to(tl.float32)
    if TABLES > 2:
        row = tl.load(index_ptr + e * stride + 2, mask=real, other=0)
        x += tl.load(c_ptr + row[:, None] * W + w[None, :]).to(tl.float32)
    tl.store(out_ptr + e[:, None] * F + w[None, :], x.to(out_ptr.dtype.element_ty), mask=real[:, None])


@triton.jit
def _sum_pieces(
    grad_ptr, order_ptr, start_ptr, piece_ptr, part_ptr, rows, F,
    W: tl.constexpr, PIECE: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum of one piece of one row's lookups. `start` is where each row's lookups begin, `piece` where its pieces do."""
    p = tl.program_id(0)
    if p < tl.load(piece_ptr + rows):
        low, high = p * 0, p * 0 + rows  # the first row whose pieces end behind p
        for _ in range(DEPTH):
            middle = (low + high) // 2
            before = tl.load(piece_ptr + tl.minimum(middle + 1, rows)) <= p
            low = tl.where(before, middle + 1, low)
            high = tl.where(before, high, middle)
        begin = tl.load(start_ptr + low) + (p - tl.load(piece_ptr + low)) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(start_ptr + low + 1))
        w, step = tl.arange(0, W), tl.arange(0, STEP)
        acc = tl.zeros((STEP, W), tl.float32)
        for j in range(begin, end, STEP):
            real = j + step < end
            e = tl.load(order_ptr + j + step, mask=real, other=0).to(tl.int64)
            acc += tl.load(grad_ptr + e[:, None] * F + w[None, :], mask=real[:, None], other=0.0).to(tl.float32)
        tl.store(part_ptr + p.to(tl.int64) * W + w, tl.sum(acc, 0))


@triton.jit
def _sum_rows(part_ptr, piece_ptr, out_ptr, W: tl.constexpr, STEP: tl.constexpr):
    """Sum of each row's pieces; zeros for a row that was never looked up."""
    row = tl.program_id(0).to(tl.int64)
    w, step = tl.arange(0, W), tl.arange(0, STEP)
    acc = tl.zeros((STEP, W), tl.float32)
    begin, end = tl.load(piece_ptr + row), tl.load(piece_ptr + row + 1)
    for j in range(begin, end, STEP):
        at = (j + step).to(tl.int64)
        acc += tl.load(part_ptr + at[:, None] * W + w[None, :], mask=(at < end)[:, None], other=0.0)
    tl.store(out_ptr + row * W + w, tl.sum(acc, 0).to(out_ptr.dtype.element_ty))


@torch.library.custom_op("onerec::lookups_forward", mutates_args=())
def lookups_forward(index_ET: Tensor, tables: Sequence[Tensor], columns: Sequence[int]) -> Tensor:
    """Features [E, F] in the tables' type; tables that are summed are neighbours, at most three."""
    E, F = len(index_ET), columns[-1] + tables[-1].shape[1]
    out = tables[0].new_empty(E, F)
    for column in dict.fromkeys(columns):
        first, count = columns.index(column), columns.count(column)
        own = [tables[first + min(i, count - 1)] for i in range(3)]
        W = own[0].shape[1]
        rows = max(1, ELEMENTS // W)
        if E:
            _gather[(triton.cdiv(E, rows),)](
                index_ET[:, first:], index_ET.stride(0), *own, out[:, column:], E, F, count, W, rows, num_warps=8
            )
    return out


@lookups_forward.register_fake
def _(index_ET: Tensor, tables: Sequence[Tensor], columns: Sequence[int]) -> Tensor:
    return tables[0].new_empty(index_ET.shape[0], columns[-1] + tables[-1].shape[1])


@torch.library.custom_op("onerec::lookups_backward", mutates_args=())
def lookups_backward(
    gradient_EF: Tensor, index_ET: Tensor, rows: Sequence[int], widths: Sequence[int], columns: Sequence[int]
) -> list[Tensor]:
    """The gradient of every table, [R, W] each, in the gradient's type. `rows` and `widths` are the tables' sizes."""
    gradient_EF = gradient_EF.contiguous()
    E, F = gradient_EF.shape
    out = []
    for table, (R, W, column) in enumerate(zip(rows, widths, columns)):
        # Narrow keys: a radix sort takes as many passes as they have bytes.
        key_E, order_E = index_ET[:, table].to(torch.int16 if R <= 2**15 else torch.int32).sort(stable=True)
        ends = torch.arange(R + 1, dtype=torch.int32, device=key_E.device)
        start = torch.searchsorted(key_E.int(), ends, out_int32=True)
        piece = torch.zeros_like(start)
        piece[1:] = ((start.diff() + PIECE - 1) // PIECE).cumsum(0)
        pieces = triton.cdiv(E, PIECE) + min(R, E)  # at most
        part = gradient_EF.new_empty(pieces, W, dtype=torch.float32)
        total = gradient_EF.new_empty(R, W)
        step = max(1, ELEMENTS // 2 // W)
        if E:
            _sum_pieces[(pieces,)](
                gradient_EF[:, column:], order_E, start, piece, part, R, F, W, PIECE, step, R.bit_length(), num_warps=4
            )
        _sum_rows[(R,)](part, piece, total, W, step, num_warps=4)
        out.append(total)
    return out


@lookups_backward.register_fake
def _(
    gradient_EF: Tensor, index_ET: Tensor, rows: Sequence[int], widths: Sequence[int], columns: Sequence[int]
) -> list[Tensor]:
    return [gradient_EF.new_empty(R, W) for R, W in zip(rows, widths)]


class Lookups(torch.autograd.Function):
    """The two operators as one differentiable function, which a compiler takes as it is."""

    @staticmethod
    def forward(ctx, index_ET: Tensor, columns: list[int], *tables: Tensor) -> Tensor:
        ctx.save_for_backward(index_ET)
        ctx.columns, ctx.rows = columns, [t.shape[0] for t in tables]
        ctx.widths = [t.shape[1] for t in tables]
        return lookups_forward(index_ET, list(tables), columns)

    @staticmethod
    def backward(ctx, gradient_EF: Tensor):
        (index_ET,) = ctx.saved_tensors
        return None, None, *lookups_backward(gradient_EF, index_ET, ctx.rows, ctx.widths, ctx.columns)


def lookups(index_ET: Tensor, tables: Sequence[Tensor], columns: Sequence[int]) -> Tensor:
    """[E, T] -> [E, F], in the tables' type. Widths are powers of two; columns ascend and leave no gap."""
    return Lookups.apply(index_ET, list(columns), *(t.contiguous() for t in tables))
