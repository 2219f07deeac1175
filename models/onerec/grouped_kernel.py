"""Triton kernel of the experts' products in any floating type: each run of rows times its expert's matrix.

    y_NF = grouped_product(x_ND, w_EDF, ends_E)      # rows ends[e - 1] to ends[e] times w[e]; CUDA, no gradient

PyTorch's grouped product on CUDA is fast in bfloat16 alone; in other types it reads `ends` back to the host, which no
CUDA graph can hold. A request in float16 or float32 needs it: bfloat16's steps change too many first items for the gate
of an export (serving/export/parity.py). `TRITON_INTERPRET=1` runs it on a CPU, slowly; tests do.

Legend: N rows, D their width, F width of the result, E experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, INNER = 64, 64, 32  # of a tile of the result, and of a step along D


@triton.jit
def _grouped_product(
    x_ptr, w_ptr, ends_ptr, out_ptr, E, D: tl.constexpr, F: tl.constexpr,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    # A tile holds rows of one expert alone; which one, every program finds from `ends` itself.
    e = tl.arange(0, EXPERTS)
    end = tl.load(ends_ptr + e, mask=e < E, other=0)
    begin = tl.load(ends_ptr + e - 1, mask=(e > 0) & (e < E), other=0)
    tiles = (tl.maximum(end - begin, 0) + ROWS - 1) // ROWS
    before = tl.cumsum(tiles) - tiles
    tile = tl.program_id(0)
    mine = (tile >= before) & (tile < before + tiles)
    expert = tl.sum(tl.where(mine, e, 0)).to(tl.int64)
    first = tl.sum(tl.where(mine, begin + (tile - before) * ROWS, 0))
    stop = tl.sum(tl.where(mine, end, 0))  # 0 for a tile beyond the last: nothing is read, nothing written
    row = (first + tl.arange(0, ROWS)).to(tl.int64)
    column, d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, INNER)
    real, within = (row < stop)[:, None], (column < F)[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(0, D, INNER):
        held = at + d < D
        x = tl.load(x_ptr + row[:, None] * D + (at + d)[None, :], mask=real & held[None, :], other=0.0)
        w_at = w_ptr + (expert * D + (at + d)[:, None]) * F + column[None, :]
        w = tl.load(w_at, mask=held[:, None] & within, other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    to = out_ptr + row[:, None] * F + column[None, :]
    tl.store(to, acc.to(out_ptr.dtype.element_ty), mask=real & within)


@torch.library.custom_op("onerec::grouped_product", mutates_args=())
def grouped_product(x_ND: Tensor, w_EDF: Tensor, ends: Tensor) -> Tensor:
    """Rows in the order of their experts; `ends` [E] int32 says where each expert's end. Sums in float32: [N, F]."""
    x, w = x_ND.contiguous(), w_EDF.contiguous()
    (N, D), (E, _, F) = x.shape, w.shape
    out = x.new_empty(N, F)
    tiles = triton.cdiv(N, ROWS) + E  # at most: each expert may leave one tile half empty
    _grouped_product[(tiles, triton.cdiv(F, COLUMNS))](
        x, w, ends.contiguous(), out, E, D, F, EXPERTS=triton.next_power_of_2(E), ROWS=ROWS, COLUMNS=COLUMNS,
        INNER=INNER, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


@grouped_product.register_fake
def _(x_ND: Tensor, w_EDF: Tensor, ends: Tensor) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_EDF.shape[2])
