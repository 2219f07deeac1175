"""How a model that was trained with yesterday's IDs goes on with today's: written by the refresh when IDs changed.

    carry = Carry.load(tokenizer / CARRY)               # None on an ordinary day
    state = carry_code_embeddings(state, carry.source)

A carry names the SID table it starts from by its digest, so that no other model is carried by mistake. An item that was
edited changes its own ID only: then every code starts from itself, and the carry is but the permission.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

CARRY = "carry.safetensors"
PARENT, REFIT = "parent_sid_sha256", "refit"
_TABLE = re.compile(r"(?:^|[./])code\.(\d+)\.weight$")
_BIAS = re.compile(r"(?:^|[./])code_bias_LK$")


@dataclasses.dataclass(frozen=True)
class Carry:
    """`parent`: digest of the SID table the model was trained with; `source`: a level's old code of each new code;
    `refit`: the codebooks are new ones, so that what a code means has moved."""

    parent: str
    source: tuple[np.ndarray, ...]
    refit: bool = False

    def save(self, path: Path) -> None:
        tensors = {f"source_{i}": s.astype(np.int64) for i, s in enumerate(self.source)}
        save_file(tensors | {REFIT: np.array([self.refit])}, path, {PARENT: self.parent})

    @classmethod
    def load(cls, path: Path) -> Carry | None:
        """None when there is no such file: no known item changed its ID."""
        if not path.is_file():
            return None
        with safe_open(path, "np") as file:
            parent, names = file.metadata()[PARENT], sorted(file.keys())
            source = tuple(file.get_tensor(name) for name in names if name != REFIT)
            return cls(parent, source, REFIT in names and bool(file.get_tensor(REFIT)[0]))


def carry_code_embeddings(state: Mapping[str, Tensor], source: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """The state of a model (or the moments of its optimiser) for the new codes.

    `code.<level>.weight` [K+1, D] (the last row is the unknown code's) and `code_bias_LK` [L, K] take each new code's
    row from its source; all else stays. Step counts and other scalars of an optimiser stay too.
    """
    index = [torch.from_numpy(np.asarray(s)) for s in source]
    out = dict(state)
    for name, value in state.items():
        if (table := _TABLE.search(name)) and value.ndim:
            rows = index[int(table[1])].to(value.device)
            out[name] = torch.cat([value[:-1][rows], value[-1:]])
        elif _BIAS.search(name) and value.ndim:
            out[name] = torch.stack([value[level][rows.to(value.device)] for level, rows in enumerate(index)])
    return out
