"""Pre-training over several processes: FSDP2 for the dense parameters, row-sharded tables, checkpointed activations.

    torchrun --nproc-per-node 4 -m models.training.pretrain ...

The model knows nothing of this file. Encoder layers and experts are sharded one by one, the rest with the root; with
`replicas` > 1 the dense parameters are sharded within groups and replicated between them (hybrid sharding). Losses are
shares of the global mean, so gradients are summed over processes, never averaged.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from models.onerec.layers import EncoderLayer
from models.onerec.model import DecoderLayer
from models.onerec.moe import MoE
from models.training.tables import RowShardedEmbedding

SHARDED_ROOTS = (
    "model.pathways.",
    "model.hashed_items.",
)  # tables read by lookup only; the code tables also serve as output heads
SHARDED_ROWS = 4096  # a smaller table is not worth an exchange


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among all. `dense` is the mesh of FSDP (two dimensions when hybrid), `rows` that of the tables."""

    rank: int
    world: int
    device: str
    dense: DeviceMesh | None = None
    rows: DeviceMesh | None = None

    @classmethod
    def join(cls, device: str, replicas: int = 1) -> Processes:
        """From torchrun's environment; alone without it. Raises ValueError when replicas does not divide the world."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls(rank=0, world=1, device=device)
        if world % replicas:
            raise ValueError(f"replicas is {replicas}, which does not divide the {world} processes")
        kind = device.partition(":")[0]
        if kind == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        if replicas > 1:
            dense = init_device_mesh(kind, (replicas, world // replicas), mesh_dim_names=("replica", "shard"))
        else:
            dense = init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
        rows = init_device_mesh(kind, (world,), mesh_dim_names=("rows",))
        return cls(rank=dist.get_rank(), world=world, device=device, dense=dense, rows=rows)

    def total(self, value: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def leave(self) -> None:
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def parallelize(loss: nn.Module, processes: Processes, *, bf16: bool, table_rows: int = SHARDED_ROWS) -> None:
    """Shard a `PretrainLoss` in place: tables of SHARDED_ROOTS with `table_rows` or more by rows, the rest by FSDP2."""
    if processes.world == 1:
        return
    assert processes.dense is not None and processes.rows is not None
    tables: set[nn.Parameter] = set()
    for name, module in list(loss.named_modules()):
        if isinstance(module, nn.Embedding) and name.startswith(SHARDED_ROOTS) and len(module.weight) >= table_rows:
            owner, _, leaf = name.rpartition(".")
            sharded = RowShardedEmbedding.of(module, processes.rows)
            setattr(loss.get_submodule(owner), leaf, sharded)
            tables.add(sharded.weight)
    # MoE returns a view, which FSDP2 warns about in case somebody adds to it in place; the layers never do.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32 if bf16 else None
    )
    for module in loss.modules():
        if isinstance(module, EncoderLayer | MoE):
            fully_shard(module, mesh=processes.dense, mp_policy=policy)
    # The root's forward takes integers and weights; only its own tensors change type, never the loss.
    fully_shard(loss, mesh=processes.dense, ignored_params=tables)
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def sync_gradients(loss: nn.Module, on: bool) -> None:
    """Off for all but the last micro-batch of a step: their gradients are reduced together."""
    if isinstance(loss, FSDPModule):
        loss.set_requires_gradient_sync(on)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute encoder and decoder layers in the backward pass instead of keeping what is inside them."""
    for module in model.modules():
        if isinstance(module, EncoderLayer | DecoderLayer):
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float, processes: Processes) -> float:
    """Scale all gradients so that their norm over everything is at most `limit`; the norm before.

    A rank of a sharded tensor adds its own rows; where several hold the same rows, each adds its share.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if processes.world == 1:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    local = [cast(DTensor, g).to_local() for g in grads]
    copies = [processes.world // _shards(cast(DTensor, g)) for g in grads]
    squares = torch.stack([t.float().square().sum() / n for t, n in zip(local, copies)])
    norm = float(processes.total(squares.sum()).sqrt())
    if norm > limit:
        torch._foreach_mul_(local, limit / (norm + 1e-6))
    return norm


def _shards(tensor: DTensor) -> int:
    sizes = [tensor.device_mesh.size(d) for d, p in enumerate(tensor.placements) if p.is_shard()]
    return functools.reduce(lambda a, b: a * b, sizes, 1)


def balance_experts(model: nn.Module, processes: Processes) -> list[list[float]]:
    """After an optimiser step: move every MoE's bias by the loads of all processes; those loads, a list a layer."""
    layers = [m for m in model.modules() if isinstance(m, MoE)]
    if not layers:
        return []
    loads = processes.total(torch.stack([layer.load_E for layer in layers]))
    for layer, load_E in zip(layers, loads):
        layer.load_E.copy_(load_E)
        layer.balance()
    return loads.tolist()
