"""Run by tests/models/training/test_distributed.py in each of several processes; an assertion here fails that test.

torchrun --nproc-per-node 4 -m tests.models.training.distributed_checks FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from models.training.checkpoint import start_optimizer
from models.training.data import never_empty
from models.training.losses import PretrainLoss
from models.training.optimizer import make_optimizer
from models.training.parallelize import Processes, balance_experts, clip_gradients, parallelize, sync_gradients
from models.training.shards import rows_of, whole
from models.training.snapshot import Checkpointer, newest
from models.training.tables import RowShardedEmbedding
from tests.models.conftest import random_batch, small_model

ROWS, WIDTH = 11, 3  # 11 rows over 4 processes: uneven, as 3 3 3 2


def tables(processes: Processes) -> None:
    """Lookup and gradient equal those of one whole table that sees the indices of all processes."""
    torch.manual_seed(1)
    table = nn.Embedding(ROWS, WIDTH)
    sharded = RowShardedEmbedding.of(table, processes.rows)
    own = [
        torch.tensor([[0, 10, 3], [3, 3, 5]]),
        torch.tensor([[7]]),
        torch.tensor([[10, 10]]),
        torch.empty(1, 0).long(),
    ]
    index = own[processes.rank % 4]
    out = sharded(index)
    assert torch.equal(out, table(index)) and out.shape == (*index.shape, WIDTH)
    out.square().sum().backward()
    sum(table(own[r % 4]).square().sum() for r in range(processes.world)).backward()
    torch.testing.assert_close(whole(sharded.weight.grad), table.weight.grad)


def one_step(processes: Processes, folder: Path, **changes: bool) -> None:
    """Gradients, their norm, the clipped step and the experts' bias equal those of one process with the whole batch."""
    lengths = [(3, 2, 1), (5, 0, 4), (1, 6, 7), (0, 2, 2)]
    (alone, _), (shared, _) = small_model(**changes), small_model(**changes)
    alone_loss, loss = (PretrainLoss(model.train(), 0.5, event_weight=0.5) for model in (alone, shared))
    parallelize(loss, processes, bf16=False, table_rows=30)
    assert any(isinstance(m, RowShardedEmbedding) for m in loss.modules())
    batches = []
    for user, length in enumerate(lengths):
        batch = never_empty(random_batch(alone, [length], seed=user))
        mask = torch.tensor([[True, user % 2 == 0]])
        batches.append(
            batch | {"targets": torch.tensor([[user, 9]]), "target_mask": mask, "weight": torch.tensor([0.5 + user])}
        )
    total = torch.tensor(sum(int(b["target_mask"].sum()) for b in batches))
    mine = batches[processes.rank :: processes.world]
    value = torch.zeros(())
    for i, batch in enumerate(mine):
        sync_gradients(loss, i == len(mine) - 1)
        part, _ = loss(batch, total)
        part.backward()
        value = value + part.detach()
    expected = torch.zeros(())
    for batch in batches:
        part, _ = alone_loss(batch, total)
        part.backward()
        expected = expected + part.detach()
    torch.testing.assert_close(processes.total(value), expected, rtol=1e-5, atol=1e-6)
    for (name, p), (_, q) in zip(shared.named_parameters(), alone.named_parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(whole(p.grad), q.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    norm = clip_gradients(list(shared.parameters()), 0.1, processes)
    torch.testing.assert_close(norm, float(nn.utils.clip_grad_norm_(alone.parameters(), 0.1)), rtol=1e-4, atol=0.0)
    rates = {"lr_sparse": 1e-2, "lr_dense": 1e-3, "weight_decay": 0.1}
    (optimizer, _), (alone_optimizer, _) = make_optimizer(shared, **rates), make_optimizer(alone, **rates)
    start_optimizer(optimizer), start_optimizer(alone_optimizer)
    optimizer.step(), alone_optimizer.step()
    loads = balance_experts(shared, processes)
    assert loads == balance_experts(alone, Processes(rank=0, world=1, device="cpu"))
    for (name, p), (_, q) in zip(shared.state_dict().items(), alone.state_dict().items(), strict=True):
        torch.testing.assert_close(whole(p), q, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    checkpoint(processes, folder, dict(shared.state_dict()))


def checkpoint(processes: Processes, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Each process writes its rows; read back by the same processes, and by one that reads all of them."""
    saver = Checkpointer(folder / "checks", "r", rank=processes.rank, world=processes.world)
    saver.save(1, state, {})
    saver.wait()
    torch.distributed.barrier()
    found = newest(folder / "checks", "r", lambda line: sys.exit(line))
    assert found is not None and len(found.files) == processes.world
    kept = {name: whole(tensor).clone() for name, tensor in state.items()}
    with torch.no_grad():
        for tensor in state.values():
            rows_of(tensor)[0].zero_()
    found.load(state)
    plain = {name: torch.zeros_like(tensor) for name, tensor in kept.items()}
    found.load(plain)
    for name, tensor in kept.items():
        assert torch.equal(whole(state[name]), tensor) and torch.equal(plain[name], tensor), name


def main() -> None:
    torch.set_num_threads(1)
    processes = Processes.join("cpu", replicas=2)
    tables(processes)
    one_step(processes, Path(sys.argv[1]) / "plain")
    one_step(processes, Path(sys.argv[1]) / "events", event_head=True)
    processes.leave()


if __name__ == "__main__":
    main()
