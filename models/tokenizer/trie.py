"""The item trie as flat arrays: which codes may follow a prefix, and which item a full code tuple is.

Nodes of a level are its distinct prefixes in lexicographic order; a node's children are one contiguous run of the
next level. `first[l][node]` is where the run starts, `code[l][child]` the code on the edge. Leaves are items.
Saved as safetensors: plain arrays, nothing executable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Trie:
    """Prefix index over unique code tuples. Tensors live on one device; `to()` moves them."""

    def __init__(self, first: list[Tensor], code: list[Tensor], item: Tensor, codebook_size: int) -> None:
        self.first, self.code, self.item = first, code, item
        self.levels, self.codebook_size = len(code), codebook_size
        self.max_children = [int((f[1:] - f[:-1]).max()) if len(f) > 1 else 0 for f in first]
        self._keys = self._leaf_keys()

    @classmethod
    def build(cls, sid_NL: np.ndarray, codebook_size: int) -> Trie:
        """From the SID table [N, L]; leaf k holds the catalogue index of its item.

        Raises ValueError when two items share a tuple or a code lies outside the codebook.
        """
        if len(sid_NL) == 0:
            raise ValueError("the SID table is empty: a trie needs at least one item; check that ingest wrote items")
        if sid_NL.min() < 0 or sid_NL.max() >= codebook_size:
            raise ValueError(f"codes lie in {sid_NL.min()}..{sid_NL.max()}, the codebook has 0..{codebook_size - 1}")
        order = np.lexsort(sid_NL.T[::-1])
        rows = sid_NL[order]
        new = np.ones(len(rows), bool)
        levels_new = []
        changed = np.zeros(len(rows), bool)
        for level in range(sid_NL.shape[1]):
            changed[1:] |= rows[1:, level] != rows[:-1, level]
            new = changed.copy()
            new[0] = True
            levels_new.append(new)
        if not new.all():
            shared = rows[~new][0].tolist()
            raise ValueError(
                f"code tuple {shared} belongs to several items; assign unique IDs before building the trie"
            )
        first, code = [], []
        parent_starts = np.zeros(1, np.int64)
        for level, is_new in enumerate(levels_new):
            starts = np.flatnonzero(is_new)
            code.append(torch.from_numpy(rows[starts, level].astype(np.int64)))
            first.append(torch.from_numpy(np.append(np.searchsorted(starts, parent_starts), len(starts))))
            parent_starts = starts
        return cls(first, code, torch.from_numpy(order.astype(np.int64)), codebook_size)

    def to(self, device: torch.device | str) -> Trie:
        return Trie(
            [f.to(device) for f in self.first],
            [c.to(device) for c in self.code],
            self.item.to(device),
            self.codebook_size,
        )

    def children(self, node: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Children of nodes of depth `level`: codes, child nodes, and which are real, each [..., max_children]."""
        start, end = self.first[level][node], self.first[level][node + 1]
        child = start[..., None] + torch.arange(self.max_children[level], device=node.device)
        real = child < end[..., None]
        child = child.clamp_max(len(self.code[level]) - 1)
        return self.code[level][child], child, real

    def _leaf_keys(self) -> Tensor:
        """The code tuple of each leaf as one sorted integer."""
        key = torch.zeros(1, dtype=torch.int64, device=self.item.device)
        for level in range(self.levels):
            counts = self.first[level][1:] - self.first[level][:-1]
            key = torch.repeat_interleave(key, counts) * self.codebook_size + self.code[level]
        return key

    def lookup(self, codes: Tensor) -> Tensor:
        """Catalogue index of each code tuple [..., L], -1 where the tuple is illegal."""
        codes = codes.long()  # three codes of 8192 do not fit into 32 bits
        key = torch.zeros_like(codes[..., 0])
        for level in range(self.levels):
            key = key * self.codebook_size + codes[..., level]
        at = torch.searchsorted(self._keys, key).clamp_max(len(self._keys) - 1)
        inside = ((codes >= 0) & (codes < self.codebook_size)).all(-1)
        return torch.where(inside & (self._keys[at] == key), self.item[at], -1)

    def save(self, path: Path) -> None:
        tensors = {f"first_{i}": f for i, f in enumerate(self.first)} | {
            f"code_{i}": c for i, c in enumerate(self.code)
        }
        save_file({**tensors, "item": self.item}, path, metadata={"codebook_size": str(self.codebook_size)})

    @classmethod
    def load(cls, path: Path, codebook_size: int) -> Trie:
        t = load_file(path)
        levels = sum(name.startswith("code_") for name in t)
        return cls(
            [t[f"first_{i}"] for i in range(levels)], [t[f"code_{i}"] for i in range(levels)], t["item"], codebook_size
        )
