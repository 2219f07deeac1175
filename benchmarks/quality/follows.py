"""How strongly items followed a history's in training, for given candidates: the third term of the joint score.

Counts as in `baselines.transitions`: nothing is trained, and only training items are counted.

Legend: B users, T events, C candidates, N items, E counted pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.baselines import HALVING, transitions
from benchmarks.quality.data import Sequences

FLOOR = 0.1  # added to the score before its logarithm: what a pair that was never seen is worth


class Follows:
    """The counted pairs as sorted keys `item x (N + 1) + next item` [E] with their counts [E], on one device."""

    def __init__(self, sequences: Sequences, device: torch.device) -> None:
        pairs = transitions(sequences).tocoo()
        self.base = sequences.num_items + 1
        key = pairs.row.astype(np.int64) * self.base + pairs.col
        order = np.argsort(key, kind="stable")
        self.key_E = torch.from_numpy(key[order]).to(device)
        self.count_E = torch.from_numpy(pairs.data[order].astype(np.float32)).to(device)

    def log_score(self, items_BT: Tensor, candidates_BC: Tensor) -> Tensor:
        """log(FLOOR + sum over events of count x HALVING ** places back) [B, C]; right-aligned histories."""
        T = items_BT.shape[1]
        total_BC = torch.zeros(candidates_BC.shape, device=candidates_BC.device)
        for back in range(min(T, 10)):  # an event ten places back counts a thousandth
            key_BC = items_BT[:, T - 1 - back, None] * self.base + candidates_BC
            at_BC = torch.searchsorted(self.key_E, key_BC).clamp_max(len(self.key_E) - 1)
            total_BC += torch.where(self.key_E[at_BC] == key_BC, self.count_E[at_BC], 0.0) * HALVING**back
        return torch.log(FLOOR + total_BC)
