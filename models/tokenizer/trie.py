"""The item trie as flat arrays: which codes may follow a prefix, and which item a full code tuple is.

    trie = Trie.from_table(Path("sid_table.parquet"), codebook_size=8192)
    trie.lookup(codes)          # [..., L] -> catalogue index, -1 where illegal; on CPU and GPU
    trie.node(prefix)           # [..., P] -> node, -1 where no item has the prefix
    trie.children(node, level)  # what may follow

Leaves are the items in the order of their packed codes: `key` (int64, sorted) and `item` (int32). Nodes of a level are
its distinct prefixes in order; a node's children are one contiguous run of the next level: `first[l][node]` is where
it starts, `code[l][child]` the code on the edge (int16; the last level's is key modulo codebook size).
12 bytes an item and 6 a node. Building takes 36 bytes an item at its peak, reading included: 3.3 GiB for 100 million
items, measured (benchmarks/tokenizer/trie.md).
Saved as safetensors, which loads as a memory map: plain arrays, nothing executable, pages read when touched.

Legend: N items, L levels, P levels of a prefix, K codebook size, C largest number of children.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.tokenizer.unique import pack

BLOCK = 1 << 21  # leaves that are compared at one time
ABOUT = "trie"  # key of the safetensors metadata


class Trie:
    """Prefix index over unique code tuples. Tensors live on one device; `to()` moves them."""

    def __init__(
        self, first: list[Tensor], code: list[Tensor], key: Tensor, item: Tensor, codebook_size: int, widest: list[int]
    ) -> None:
        self.first, self.code, self.key, self.item = first, code, key, item
        self.levels, self.codebook_size, self.max_children = len(first), codebook_size, widest

    @classmethod
    def build(cls, sid_NL: np.ndarray, codebook_size: int) -> Trie:
        """From the codes [N, L] of any integer type; leaf k holds the catalogue index of its item.

        Raises ValueError when two items share a tuple or a code lies outside the codebook.
        """
        _check(sid_NL, codebook_size)
        return cls._from_keys(pack(sid_NL, codebook_size), sid_NL.shape[1], codebook_size)

    @classmethod
    def from_table(cls, path: Path, codebook_size: int) -> Trie:
        """From a SID table on disk, a part at a time: the table never lies in memory as a whole."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        columns = sorted(c for c in file.schema_arrow.names if c[0] == "c" and c[1:].isdigit())
        key, start = np.empty(file.metadata.num_rows, np.int64), 0
        for batch in file.iter_batches(1 << 18, columns=columns):
            codes = np.stack([batch[c].to_numpy() for c in columns], 1)
            _check(codes, codebook_size)
            key[start : start + len(codes)] = pack(codes, codebook_size)
            start += len(codes)
        if not start:
            _check(np.empty((0, len(columns)), np.int64), codebook_size)
        return cls._from_keys(key, len(columns), codebook_size)

    @classmethod
    def _from_keys(cls, key: np.ndarray, levels: int, codebook_size: int) -> Trie:
        """`key` is the caller's no more: it is dropped as soon as its sorted copy exists."""
        order = np.argsort(key)
        key = key[order]
        item = order.astype(np.int32)
        del order
        same = np.flatnonzero(key[1:] == key[:-1])
        if len(same):
            shared = [int(key[same[0]]) // codebook_size**i % codebook_size for i in reversed(range(levels))]
            raise ValueError(
                f"code tuple {shared} belongs to several items; assign unique IDs before building the trie"
            )
        first, code, above = [], [], np.zeros(1, np.int32)
        for level in range(levels - 1):
            divisor = codebook_size ** (levels - 1 - level)
            starts = _starts(key, divisor)
            first.append(np.append(np.searchsorted(starts, above), len(starts)).astype(np.int32))
            code.append((key[starts] // divisor % codebook_size).astype(_code_type(codebook_size)))
            above = starts
        first.append(np.append(above, len(key)).astype(np.int32))
        widest = [int(np.diff(f).max()) for f in first]
        firsts, codes = ([torch.from_numpy(a) for a in arrays] for arrays in (first, code))
        return cls(firsts, codes, torch.from_numpy(key), torch.from_numpy(item), codebook_size, widest)

    def to(self, device: torch.device | str) -> Trie:
        first, code = ([t.to(device) for t in tensors] for tensors in (self.first, self.code))
        return Trie(first, code, self.key.to(device), self.item.to(device), self.codebook_size, self.max_children)

    def children(self, node: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Children of nodes of depth `level`: codes, child nodes, and which are real, each [..., C]."""
        start, end = self.first[level][node].long(), self.first[level][node + 1].long()
        child = start[..., None] + torch.arange(self.max_children[level], device=node.device)
        real = child < end[..., None]
        child = child.clamp_max(self._nodes(level) - 1)
        return self._code(child, level), child, real

    def node(self, prefix: Tensor) -> Tensor:
        """Node [...] of depth P of each prefix [..., P], -1 where no item begins so. The root is node 0 of depth 0.

        A binary search among the children of every level, for all prefixes at once.
        """
        prefix = prefix.long()
        node = torch.zeros(prefix.shape[:-1], dtype=torch.int64, device=prefix.device)
        found = torch.ones_like(node, dtype=torch.bool)
        for level in range(prefix.shape[-1]):
            wanted = prefix[..., level]
            low, end = self.first[level][node].long(), self.first[level][node + 1].long()
            high = end
            for _ in range(self.max_children[level].bit_length()):
                middle = (low + high) // 2
                below = (middle < high) & (self._code(middle.clamp_max(self._nodes(level) - 1), level) < wanted)
                low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
            at = low.clamp_max(self._nodes(level) - 1)
            found &= (low < end) & (self._code(at, level) == wanted)
            node = torch.where(found, at, 0)
        return torch.where(found, node, -1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Catalogue index of each code tuple [..., L], -1 where the tuple is illegal."""
        codes = codes.long()  # three codes of 8192 do not fit into 32 bits
        key = torch.zeros_like(codes[..., 0])
        for level in range(self.levels):
            key = key * self.codebook_size + codes[..., level]
        at = torch.searchsorted(self.key, key).clamp_max(len(self.key) - 1)
        inside = ((codes >= 0) & (codes < self.codebook_size)).all(-1)
        return torch.where(inside & (self.key[at] == key), self.item[at].long(), -1)

    def codes(self, leaf: Tensor) -> Tensor:
        """Code tuples [..., L] of leaves (places in `item`)."""
        key = self.key[leaf]
        parts = [key // self.codebook_size**i % self.codebook_size for i in reversed(range(self.levels))]
        return torch.stack(parts, -1)

    def _code(self, child: Tensor, level: int) -> Tensor:
        if level == self.levels - 1:
            return self.key[child] % self.codebook_size
        return self.code[level][child].long()

    def _nodes(self, level: int) -> int:
        """Number of children that nodes of depth `level` have together."""
        return len(self.key) if level == self.levels - 1 else len(self.code[level])

    def save(self, path: Path) -> None:
        """Write one safetensors file, the same bytes for the same trie."""
        tensors = {f"first_{i}": f for i, f in enumerate(self.first)} | {
            f"code_{i}": c for i, c in enumerate(self.code)
        }
        about = json.dumps({"codebook_size": self.codebook_size, "widest": self.max_children})
        # One entry only: safetensors writes several in no fixed order, and the same trie must be the same bytes.
        save_file({**tensors, "key": self.key, "item": self.item}, path, metadata={ABOUT: about})

    @classmethod
    def load(cls, path: Path, codebook_size: int) -> Trie:
        """Raises ValueError for a file of an earlier layout or another codebook size."""
        with safe_open(path, "pt") as file:
            about, names = json.loads((file.metadata() or {}).get(ABOUT, "{}")), set(file.keys())
            if not about:
                raise ValueError(f"{path} is a trie of an earlier layout; build the tokenizer of this day again")
            if about["codebook_size"] != codebook_size:
                raise ValueError(
                    f"{path} is of {about['codebook_size']} codes a level, the codebooks have {codebook_size};"
                    " do not mix tokenizers"
                )
            first, code = (
                [file.get_tensor(name) for name in sorted(n for n in names if n.startswith(kind))]
                for kind in ("first_", "code_")
            )
            key, item = file.get_tensor("key"), file.get_tensor("item")
        return cls(first, code, key, item, codebook_size, about["widest"])


def _check(sid_NL: np.ndarray, codebook_size: int) -> None:
    if len(sid_NL) == 0:
        raise ValueError("the SID table is empty: a trie needs at least one item; check that ingest wrote items")
    if sid_NL.min() < 0 or sid_NL.max() >= codebook_size:
        raise ValueError(f"codes lie in {sid_NL.min()}..{sid_NL.max()}, the codebook has 0..{codebook_size - 1}")


def _starts(key: np.ndarray, divisor: int) -> np.ndarray:
    """Leaves at which the prefix key // divisor begins, int32."""
    found = [np.zeros(1, np.int32)]
    for start in range(1, len(key), BLOCK):
        prefix = key[start - 1 : start + BLOCK] // divisor
        found.append((np.flatnonzero(prefix[1:] != prefix[:-1]) + start).astype(np.int32))
    return np.concatenate(found)


def _code_type(codebook_size: int) -> type:
    return np.int16 if codebook_size <= 1 << 15 else np.int32
