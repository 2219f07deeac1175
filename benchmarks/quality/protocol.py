"""What every model of the tables shares: full ranking without the history, selection on validation, autocast.

Legend: B users of a batch, U users, N items, K places.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality.data import MAX_HISTORY, Batches, Sequences
from models.evaluation.metrics import next_item_metrics

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
SELECT_BY = "ndcg@10"
PLACES = 10


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 on CUDA for training, nothing on CPU. Ranking stays in float32: rounded scores would tie."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def without_history(score_BN: Tensor, items_BT: Tensor) -> Tensor:
    """Scores with the history's items at -inf; items_BT may hold N, the padding."""
    wide = torch.cat([score_BN, score_BN.new_zeros(len(score_BN), 1)], 1)
    return wide.scatter(1, items_BT, float("-inf"))[:, :-1]


@torch.no_grad()
def rank_next(
    scores: Callable[[Tensor], Tensor], sequences: Sequences, part: str, device: torch.device, batch: int = 1024
) -> dict[str, np.ndarray]:
    """Per-user metrics [U] of a model that scores all items: right-aligned histories [B, T] to [B, N]."""
    history, target = sequences.held_out(part)
    ranked = np.full((sequences.users, PLACES), -1, np.int64)
    for users, items_BT in Batches(history, sequences.num_items, device, MAX_HISTORY).in_order(batch):
        k = min(PLACES, sequences.num_items)
        ranked[users, :k] = without_history(scores(items_BT), items_BT).topk(k, dim=1).indices.cpu().numpy()
    return next_item_metrics(ranked, target)


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The four numbers of the tables."""
    return {name: float(values[name].mean()) for name in METRICS}


class Selection:
    """Keeps the weights of the best validation epoch, stops by patience or time, and writes the curve down."""

    def __init__(
        self,
        model: nn.Module,
        *,
        patience: int,
        seconds: float,
        progress: Callable[[str], None],
        every: int = 5,
    ) -> None:
        self.model, self.patience, self.seconds, self.progress, self.every = model, patience, seconds, progress, every
        self.begun = time.monotonic()
        self.best, self.best_epoch, self.curve = -1.0, -1, []  # type: float, int, list[dict[str, float]]
        self.best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @property
    def spent(self) -> float:
        return time.monotonic() - self.begun

    def due(self, epoch: int) -> bool:
        """Whether this epoch (from 0) is one to validate after."""
        return (epoch + 1) % self.every == 0 or self.spent > self.seconds

    def stop(self, epoch: int, validation: dict[str, np.ndarray]) -> bool:
        """Note an epoch's validation; True when nothing better came for `patience` epochs or the time is over."""
        now = means(validation)
        self.curve.append({"epoch": epoch, "seconds": round(self.spent, 1)} | now)
        if now[SELECT_BY] > self.best:
            self.best, self.best_epoch = now[SELECT_BY], epoch
            self.best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        text = " ".join(f"{name} {value:.4f}" for name, value in now.items())
        self.progress(f"  epoch {epoch + 1:>3} {self.spent:6.1f} s  validation {text}")
        return epoch - self.best_epoch >= self.patience or self.spent > self.seconds
