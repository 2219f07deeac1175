"""Embedding tables whose gradient on CUDA is a sum over sorted indices, and the two ways to embed an item.

A compiled backward adds every looked-up row's gradient to the table with atomics; at the published context that is
2277 events x 4000 numbers a sample. Sorting the indices first reads each gradient once and adds in registers.

Legend: N lookups, R rows, D width, L=3 levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("onerec::embedding_gradient", mutates_args=())
def embedding_gradient(gradient_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    """Sum of the gradients of each row's lookups, [R, D]; a row never looked up gets zeros."""
    return torch.ops.aten.embedding_dense_backward(gradient_ND.contiguous(), index_N, rows, -1, False)


@embedding_gradient.register_fake
def _(gradient_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    return gradient_ND.new_empty(rows, gradient_ND.shape[-1])


class Lookup(torch.autograd.Function):
    """F.embedding with the gradient above, which a compiler takes as it is."""

    @staticmethod
    def forward(ctx, table_RD: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.rows = len(table_RD)
        return F.embedding(index_N, table_RD)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (index,) = ctx.saved_tensors
        return embedding_gradient(gradient.reshape(-1, gradient.shape[-1]), index.reshape(-1), ctx.rows), None


class Table(nn.Embedding):
    """nn.Embedding; on CUDA with the sorted gradient."""

    sorted_gradient = True  # a benchmark turns it off

    def forward(self, index: Tensor) -> Tensor:
        if self.weight.is_cuda and self.sorted_gradient:
            return Lookup.apply(self.weight, index)
        return super().forward(index)


class HashedItems(nn.Module):
    """A row of its own for an item of a history, by hash of its catalogue index (TR 4.2.2, the "vid" option)."""

    def __init__(self, buckets: int, d_model: int) -> None:
        super().__init__()
        self.table = Table(buckets, d_model)

    def forward(self, index: Tensor, items: int) -> Tensor:
        """[...] -> [..., D]. `items` is the catalogue's length, and an index that reaches it is the unknown item."""
        mixed = (index * 0x9E3779B1) & 0xFFFFFFFF
        bucket = 1 + (mixed >> 7) % (self.table.num_embeddings - 1)
        return self.table(torch.where(index < items, bucket, 0))
