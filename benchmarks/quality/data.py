"""Item sequences of users, and the leave-last-out protocol of TIGER, P5 and S3-Rec on them.

    sequences = Sequences.read_text(Path("amazon14/beauty/sequences.txt"))     # or Sequences.load(prepared folder)
    history, target = sequences.held_out("validation")

Of each user the last item is the test target, the one before it the validation target, the rest is for training. The
test history holds the validation item; no model is trained on it. No target ever occurs in its history, so a user's
history is taken out of every list that is ranked, by us and by the baselines alike.

Legend: U users, N items, B users of a batch, T events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAX_HISTORY = 50
LENGTHS = (4, 6, 8, 11, 16, 24, 36, 51)  # a batch is as long as the shortest of these that holds its longest row
IGNORED = -100  # a place without a target
HELD_OUT = {"validation": 2, "test": 1}  # place of the target, from the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
    """Catalogue indices of all users, oldest first, end to end; user u owns items[offsets[u]:offsets[u + 1]]."""

    items: np.ndarray
    offsets: np.ndarray
    num_items: int

    def __post_init__(self) -> None:
        lengths = np.diff(self.offsets)
        if len(lengths) == 0 or lengths.min() < 3:
            raise ValueError("every user needs at least three items (training, validation, test); drop shorter users")
        if len(self.items) != self.offsets[-1] or self.items.min() < 0 or self.items.max() >= self.num_items:
            raise ValueError(f"items must be catalogue indices 0..{self.num_items - 1}, one an interaction")

    @classmethod
    def read_text(cls, path: Path) -> Sequences:
        """From lines `user item item ...` with item ids from 1."""
        rows = [np.array(line.split()[1:], np.int64) - 1 for line in path.read_text().splitlines() if line.strip()]
        items = np.concatenate(rows)
        return cls(items=items, offsets=np.cumsum([0] + [len(r) for r in rows]), num_items=int(items.max()) + 1)

    def save(self, folder: Path) -> None:
        """As items.npy (the last number is the catalogue's size) and offsets.npy."""
        np.save(folder / "items.npy", np.append(self.items, self.num_items).astype(np.int32))
        np.save(folder / "offsets.npy", self.offsets.astype(np.int64))

    @classmethod
    def load(cls, folder: Path) -> Sequences:
        """What `save` wrote. Raises ValueError when the folder was not prepared."""
        if not (folder / "items.npy").exists():
            raise ValueError(f"{folder} holds no items.npy; make it with python -m benchmarks.quality.prepare")
        raw = np.load(folder / "items.npy", allow_pickle=False).astype(np.int64)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        return cls(items=raw[:-1], offsets=offsets, num_items=int(raw[-1]))

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def training(self) -> list[np.ndarray]:
        """Each user's items without the last two."""
        return [self.items[a : b - 2] for a, b in zip(self.offsets[:-1], self.offsets[1:])]

    def held_out(self, part: str) -> tuple[list[np.ndarray], np.ndarray]:
        """Each user's history (all of it, oldest first) and target, of "validation" or "test"."""
        if part not in HELD_OUT:
            raise ValueError(f"part is {part!r}; choose one of {sorted(HELD_OUT)}")
        back = HELD_OUT[part]
        history = [self.items[a : b - back] for a, b in zip(self.offsets[:-1], self.offsets[1:])]
        return history, self.items[self.offsets[1:] - back]


def padded(rows: list[np.ndarray], length: int, padding: int) -> np.ndarray:
    """The last `length` items of each row, right-aligned [len(rows), length]."""
    out = np.full((len(rows), length), padding, np.int64)
    for i, row in enumerate(rows):
        if len(row):
            out[i, -min(len(row), length) :] = row[-length:]
    return out


class Batches:
    """Right-aligned rows on one device, behind them one that is all padding."""

    def __init__(
        self, rows: list[np.ndarray], padding: int, device: torch.device, length: int = MAX_HISTORY + 1
    ) -> None:
        self.length_U = np.minimum([len(r) for r in rows], length)
        blank = np.zeros(0, np.int64)
        self.rows_UT = torch.from_numpy(padded([*rows, blank], int(self.length_U.max()), padding)).to(device)

    def mixed_epoch(self, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Every user once in random order, [size, T] a batch, all of full length; the last batch is filled up."""
        order = np.append(rng.permutation(len(self.length_U)), np.full(-len(self.length_U) % size, len(self.length_U)))
        order_CB = torch.from_numpy(order.reshape(-1, size)).to(self.rows_UT.device)
        for rows_B in order_CB:
            yield self.rows_UT[rows_B]

    def epoch(self, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Every user once, [size, T] a batch: rows of like length, so that little is padding, batches in random order.

        Shapes are few (LENGTHS), the last batch is filled with padding. Batches hold different numbers of events; a
        loss must be a sum over `targets`, not a mean over the batch, or the events of long rows would count for less.
        """
        order = np.argsort(self.length_U + 2 * rng.random(len(self.length_U)), kind="stable")
        order = np.append(order, np.full(-len(order) % size, len(order)))
        longest = np.append(self.length_U, 0)[order].reshape(-1, size).max(1)
        order_CB = torch.from_numpy(order.reshape(-1, size)).to(self.rows_UT.device)
        width = self.rows_UT.shape[1]
        for i in rng.permutation(len(longest)):
            fitting = [n for n in LENGTHS if longest[i] <= n < width]
            yield self.rows_UT[order_CB[i], -min([*fitting, width]) :]

    def targets(self, size: int) -> float:
        """Mean number of next-item targets in a batch of `epoch`."""
        return float((self.length_U - 1).clip(0).sum()) / -(-len(self.length_U) // size)

    def in_order(self, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All users, sorted by length: their numbers and rows [B, T]."""
        order = np.argsort(self.length_U, kind="stable")
        for i in range(0, len(order), size):
            part = order[i : i + size]
            longest = max(1, int(self.length_U[part].max()))
            yield part, self.rows_UT[torch.from_numpy(part).to(self.rows_UT.device), -longest:]
