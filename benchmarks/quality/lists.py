"""Ranked lists of a model on disk, so that models that were trained on different machines stand in one table.

    save(folder, Lists(model="SASRec", seed=1, user_id=..., ranked=..., about={"device": "CPU"}))
    for lists in read(folder): ...

One .npz a model and seed. Legend: U users, K places.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("recall@10", "recall@50", "recall@100", "ndcg@10", "ndcg@50")
TOP = 100  # places of a list
MISSING = 0.02  # share of users for whom a model may have no list


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lists:
    """`ranked` [U, K]: item ids, best first, -1 where a list is shorter. `about`: JSON, device and commit among it."""

    model: str
    seed: int
    user_id: np.ndarray
    ranked: np.ndarray
    about: dict[str, Any]

    def of(self, users: np.ndarray) -> np.ndarray:
        """The lists of these users, in their order; nothing (-1) for a user who has none.

        Raises ValueError when more than one user in fifty has none: the lists are of another day.
        """
        order = np.argsort(self.user_id)
        at = order[np.minimum(np.searchsorted(self.user_id[order], users), len(order) - 1)]
        known = self.user_id[at] == users
        if known.mean() < 1 - MISSING:
            raise ValueError(
                f"{self.model}, seed {self.seed} ranked {known.sum():,} of {len(users):,} users: another day's lists?"
            )
        return np.where(known[:, None], self.ranked[at], -1)


def path(folder: Path, model: str, seed: int) -> Path:
    """Where a model's lists lie."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', model.lower()).strip('-')}_{seed}.npz"


def save(folder: Path, lists: Lists) -> Path:
    """Write `<model>_<seed>.npz`; a reader sees the old or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    target = path(folder, lists.model, lists.seed)
    staged = folder / f".{target.name}"
    with open(staged, "wb") as file:
        np.savez_compressed(
            file,
            user_id=lists.user_id.astype(np.int32),
            ranked=lists.ranked.astype(np.int16 if lists.ranked.max(initial=0) < 2**15 else np.int64),
            model=lists.model,
            seed=lists.seed,
            about=json.dumps(lists.about),
        )
    os.replace(staged, target)
    return target


def read(folder: Path) -> list[Lists]:
    """All of a folder, by model and seed. Raises ValueError when it holds none."""
    found = []
    for one in sorted(folder.glob("*.npz")):
        with np.load(one, allow_pickle=False) as file:
            found.append(
                Lists(
                    model=str(file["model"]),
                    seed=int(file["seed"]),
                    user_id=file["user_id"].astype(np.int64),
                    ranked=file["ranked"].astype(np.int64),
                    about=json.loads(str(file["about"])),
                )
            )
    if not found:
        raise ValueError(f"{folder} holds no lists; make them with benchmarks.quality.kuairand_trained or ..._onerec")
    return found
