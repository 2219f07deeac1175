"""Embedding tables whose gradient on CUDA is a sum over sorted indices, and an item as hashed row or as codes.

A compiled backward adds every looked-up row's gradient to the table with atomics; at the published context that is
2277 events x 4200 numbers a sample. Sorting the indices first reads each gradient once and adds in registers.

Legend: N lookups, T tables of equal size that are looked up and summed, R rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.kernels import Kernels, UsesKernels

SPREAD_ROWS = 4096  # a smaller table is summed as several copies, so that no row waits for millions of lookups


@torch.library.custom_op("onerec::embedding_gradient", mutates_args=())
def embedding_gradient(gradient_ND: Tensor, index_NT: Tensor, rows: int) -> Tensor:
    """Sum of the gradients of each row's lookups in each table, [T, R, D]; a row never looked up gets zeros."""
    N, T = index_NT.shape
    gradient_ND = gradient_ND.contiguous()
    copies = max(1, SPREAD_ROWS // rows)
    copy_N = torch.arange(N, device=index_NT.device) * copies // max(1, N) * rows
    out = gradient_ND.new_empty(T, rows, gradient_ND.shape[1])
    for table in range(T):
        index = index_NT[:, table] + copy_N
        total = torch.ops.aten.embedding_dense_backward(gradient_ND, index, rows * copies, -1, False)
        torch.sum(total.unflatten(0, (copies, rows)), 0, out=out[table])
    return out


@embedding_gradient.register_fake
def _(gradient_ND: Tensor, index_NT: Tensor, rows: int) -> Tensor:
    return gradient_ND.new_empty(index_NT.shape[1], rows, gradient_ND.shape[1])


class LookupSum(torch.autograd.Function):
    """The sum of one row of each table, with the gradient above, which a compiler takes as it is."""

    @staticmethod
    def forward(ctx, index_NT: Tensor, *tables_RD: Tensor) -> Tensor:
        ctx.save_for_backward(index_NT)
        ctx.rows = len(tables_RD[0])
        total = F.embedding(index_NT[..., 0], tables_RD[0])
        for i, table in enumerate(tables_RD[1:], 1):
            total = total + F.embedding(index_NT[..., i], table)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (index_NT,) = ctx.saved_tensors
        flat_ND = gradient.reshape(-1, gradient.shape[-1]).contiguous()  # a compiler's copy of a slice is the faster
        total_TRD = embedding_gradient(flat_ND, index_NT.reshape(-1, index_NT.shape[-1]), ctx.rows)
        return None, *total_TRD.unbind(0)


class Table(UsesKernels, nn.Embedding):
    """nn.Embedding; on CUDA with the sorted gradient."""

    def forward(self, index: Tensor) -> Tensor:
        return lookup(self.weight, index, self.kernels) if self.sorts() else super().forward(index)

    def sorts(self) -> bool:
        """Whether the sorted gradient applies: on CUDA, to a weight that is not split over processes."""
        return (
            torch.is_grad_enabled()
            and self.kernels.sorted_gradient
            and self.weight.is_cuda
            and type(self.weight) in (Tensor, nn.Parameter)
        )


def lookup(table_RD: Tensor, index: Tensor, kernels: Kernels) -> Tensor:
    """F.embedding of a tensor, on CUDA with the sorted gradient."""
    if torch.is_grad_enabled() and kernels.sorted_gradient and table_RD.is_cuda:
        return LookupSum.apply(index[..., None], table_RD)
    return F.embedding(index, table_RD)


def lookup_sum(index_NT: Tensor, tables: Sequence[nn.Module]) -> Tensor:
    """[..., T] -> [..., D]: row index[..., t] of table t, summed over tables of equal size."""
    if all(isinstance(table, Table) and table.sorts() for table in tables):
        return LookupSum.apply(index_NT, *(table.weight for table in tables))
    total = tables[0](index_NT[..., 0])
    for i, table in enumerate(tables[1:], 1):
        total = total + table(index_NT[..., i])
    return total


def event_kernels_run(tables: Sequence[nn.Module]) -> bool:
    """Whether `lookups` may be called: training on CUDA, whole tables, widths that are powers of two."""
    widths = (16, 32, 64, 128, 256, 512, 1024, 2048)
    return all(
        isinstance(t, Table) and t.kernels.event_lookups and t.sorts() and t.embedding_dim in widths for t in tables
    )


def lookups(index_ET: Tensor, tables: Sequence[nn.Embedding], columns: Sequence[int]) -> Tensor:
    """Rows of tables side by side, [E, F], in one kernel a column. Needs Triton, which comes with PyTorch for CUDA.

    Table t's rows stand from columns[t] on; neighbours of the same column are summed.
    """
    from models.onerec import event_kernels

    return event_kernels.lookups(index_ET, [table.weight for table in tables], columns)


class HashedItems(nn.Module):
    """A row of its own for an item of a history, by hash of its catalogue index (TR 4.2.2, the "vid" option)."""

    def __init__(self, buckets: int, d_model: int) -> None:
        super().__init__()
        self.table = Table(buckets, d_model)

    def forward(self, index: Tensor, items: int) -> Tensor:
        """[...] -> [..., D]. `items` is the catalogue's length, and an index that reaches it is the unknown item."""
        return self.table(self.bucket(index, items))

    def bucket(self, index: Tensor, items: int) -> Tensor:
        """The row of each index."""
        mixed = (index * 0x9E3779B1) & 0xFFFFFFFF
        bucket = 1 + (mixed >> 7) % (self.table.num_embeddings - 1)
        return torch.where(index < items, bucket, 0)
