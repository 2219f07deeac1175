"""Sharded and whole tensors: which rows a process holds, and how to get from one to the other.

A DTensor here is cut by its first dimension (Shard(0)) or replicated; FSDP2 and the row-sharded tables make no others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


def rows_of(tensor: Tensor) -> tuple[Tensor, int, int, bool]:
    """The local rows, the first one's number, the number of all rows, and whether this process is to write them.

    A scalar or plain tensor is whole everywhere and written by process 0.
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0, len(tensor) if tensor.ndim else 1, rank == 0
    start, rows, writes, cut = 0, tensor.shape[0] if tensor.ndim else 1, True, False
    for dim, placement in enumerate(tensor.placements):
        at = tensor.device_mesh.get_local_rank(dim)
        if isinstance(placement, Replicate):
            writes = writes and at == 0
        else:
            assert placement == Shard(0) and not cut, f"rows cut by {tensor.placements}"
            start, cut = min(at * -(-rows // tensor.device_mesh.size(dim)), rows), True
    return tensor.to_local().detach(), start, rows, writes


@torch.no_grad()
def fill(tensor: Tensor, whole_tensor: Tensor) -> Tensor:
    """Copy this process's rows of a whole tensor into `tensor`, and return it."""
    local, start, _, _ = rows_of(tensor)
    local.copy_(whole_tensor[start : start + len(local)] if local.ndim else whole_tensor)
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
