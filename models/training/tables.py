"""Embedding tables cut by rows over all processes, for tables that no device should hold or reduce whole.

    sharded = RowShardedEmbedding.of(embedding, mesh)         # mesh: one dimension, all processes

A lookup sends each distinct id to the process that owns its row and gets the vectors back: two exchanges forward, one
backward. Row r lies with process r // ceil(rows / processes), as DTensor's Shard(0) cuts it, so optimiser, clipping and
checkpoints treat the table as any sharded tensor. Gradients add up over processes: losses are shares of a global mean.

Legend: U distinct ids of this process, R ids that this process is asked for, D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


class RowShardedEmbedding(nn.Module):
    """In place of an `nn.Embedding`: [...] -> [..., D]. `weight` is a DTensor [rows, D], Shard(0)."""

    def __init__(self, local_RD: Tensor, rows: int, mesh: DeviceMesh) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, local_RD.shape[1]
        self.group, self.processes = mesh.get_group(), mesh.size()
        self.per_process = -(-rows // self.processes)
        self.first = mesh.get_local_rank() * self.per_process
        shape = torch.Size((rows, self.embedding_dim))
        sharded = DTensor.from_local(
            local_RD, mesh, [Shard(0)], run_check=False, shape=shape, stride=(self.embedding_dim, 1)
        )
        self.weight = nn.Parameter(sharded)

    @classmethod
    def of(cls, table: nn.Embedding, mesh: DeviceMesh) -> RowShardedEmbedding:
        """This process's rows of a whole table."""
        per_process = -(-table.num_embeddings // mesh.size())
        first = mesh.get_local_rank() * per_process
        local = table.weight.detach()[first : first + per_process].clone()
        return cls(local, table.num_embeddings, mesh)

    def forward(self, index: Tensor) -> Tensor:
        id_U, where = index.reshape(-1).unique(return_inverse=True)  # ascending, so in order of the owners
        asked = torch.bincount(id_U // self.per_process, minlength=self.processes)
        answered = torch.empty_like(asked)
        dist.all_to_all_single(answered, asked, group=self.group)
        ask, answer = asked.tolist(), answered.tolist()
        id_R = id_U.new_empty(sum(answer))
        dist.all_to_all_single(id_R, id_U, answer, ask, group=self.group)
        vector_RD = cast(DTensor, self.weight).to_local()[id_R - self.first]
        vector_UD = _Exchange.apply(vector_RD, ask, answer, self.group)
        return vector_UD[where].view(*index.shape, self.embedding_dim)


class _Exchange(torch.autograd.Function):
    """Rows to the processes that asked for them; their gradients the other way."""

    @staticmethod
    def forward(ctx, rows_RD: Tensor, receive: list[int], send: list[int], group) -> Tensor:
        ctx.receive, ctx.send, ctx.group = receive, send, group
        out = rows_RD.new_empty(sum(receive), rows_RD.shape[1])
        dist.all_to_all_single(out, rows_RD.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx, grad_UD: Tensor) -> tuple[Tensor | None, ...]:
        out = grad_UD.new_empty(sum(ctx.send), grad_UD.shape[1])
        dist.all_to_all_single(out, grad_UD.contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return out, None, None, None
