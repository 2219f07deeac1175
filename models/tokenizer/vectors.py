"""Where vectors come from: a tensor, or Parquet files larger than memory; both are read in chunks, in the same order.

    ParquetVectors([Path("embeddings.parquet")], column="embedding", device="cuda")
    InMemory(x_ND)                       # x may lie on another device than the work is done on

A source is read once an iteration of K-means. Legend: N vectors, D dimensions, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 31}  # of float32 rows


def chunk_rows(dim: int, device: torch.device) -> int:
    """Rows of a chunk on this device."""
    return max(1, CHUNK_BYTES["cuda" if device.type == "cuda" else "cpu"] // (4 * max(dim, 1)))


class Vectors(Protocol):
    """`len(v)` rows of `v.dim` numbers on `v.device`."""

    dim: int
    device: torch.device

    def __len__(self) -> int: ...

    def chunks(self) -> Iterator[Tensor]:
        """Chunks [B, D], the same ones in every pass."""

    def rows(self, index: Tensor) -> Tensor:
        """The rows of an ascending index [S] -> [S, D]."""


class InMemory:
    """A tensor [N, D]."""

    def __init__(self, x_ND: Tensor, device: torch.device | str | None = None, rows: int | None = None) -> None:
        self.x_ND, self.dim = x_ND, x_ND.shape[1]
        self.device = x_ND.device if device is None else torch.device(device)
        self._rows = rows or chunk_rows(self.dim, self.device)

    def __len__(self) -> int:
        return len(self.x_ND)

    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, len(self.x_ND), self._rows):
            yield self.x_ND[start : start + self._rows].to(self.device, non_blocking=True)

    def rows(self, index: Tensor) -> Tensor:
        return self.x_ND[index.to(self.x_ND.device)].to(self.device)


class ParquetVectors:
    """A list column of numbers in Parquet files, float32. Memory: one chunk.

    Raises ValueError for rows of unequal length or missing vectors.
    """

    def __init__(
        self, paths: Sequence[Path], column: str, device: torch.device | str = "cpu", rows: int | None = None
    ) -> None:
        import pyarrow.parquet as pq

        self.paths, self.column, self.device = list(paths), column, torch.device(device)
        self._length = sum(pq.ParquetFile(path).metadata.num_rows for path in self.paths)
        self.dim = 0
        if self._length:
            first = next(b for path in self.paths for b in pq.ParquetFile(path).iter_batches(1, columns=[column]))
            self.dim = len(first.column(0)[0].as_py() or [])
        self._rows = rows or chunk_rows(self.dim, self.device)

    def __len__(self) -> int:
        return self._length

    def chunks(self) -> Iterator[Tensor]:
        """Chunks do not end at the files' ends, so that they are those of the same rows in memory."""
        kept: list[np.ndarray] = []
        have = 0
        for block in self._blocks():
            kept.append(block)
            have += len(block)
            while have >= self._rows:
                joined = np.concatenate(kept) if len(kept) > 1 else kept[0]
                yield torch.from_numpy(joined[: self._rows]).to(self.device)
                kept, have = [joined[self._rows :]], have - self._rows
        if have:
            yield torch.from_numpy(np.concatenate(kept)).to(self.device)

    def _blocks(self) -> Iterator[np.ndarray]:
        import pyarrow.parquet as pq

        for path in self.paths:
            for batch in pq.ParquetFile(path).iter_batches(self._rows, columns=[self.column]):
                lists = batch.column(0)
                flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
                if lists.null_count or len(flat) != len(lists) * self.dim:
                    raise ValueError(
                        f"{path}: column {self.column} holds {len(flat)} numbers in {len(lists)} rows of {self.dim};"
                        " every item needs a vector of the same length"
                    )
                yield flat.reshape(len(lists), self.dim)

    def rows(self, index: Tensor) -> Tensor:
        found, start, index = [], 0, index.cpu()
        for x in self.chunks():
            here = index[(index >= start) & (index < start + len(x))] - start
            found.append(x[here.to(x.device)])
            start += len(x)
        return torch.cat(found)


class Residuals:
    """What the first levels leave over of `vectors`: x - sum of the centroids that `codes` name.

    `codes`: one int32 tensor [N] a level, 4 bytes an item, in the place of a second copy of the vectors.
    """

    def __init__(self, vectors: Vectors, codebooks: Sequence[Tensor], codes: Sequence[Tensor]) -> None:
        self.vectors, self.codebooks, self.codes = vectors, codebooks, codes
        self.dim, self.device = vectors.dim, vectors.device

    def __len__(self) -> int:
        return len(self.vectors)

    def chunks(self) -> Iterator[Tensor]:
        start = 0
        for x in self.vectors.chunks():
            yield subtract(x, self.codebooks, [c[start : start + len(x)] for c in self.codes])
            start += len(x)

    def rows(self, index: Tensor) -> Tensor:
        x = self.vectors.rows(index)
        return subtract(x, self.codebooks, [c[index.to(c.device)] for c in self.codes])


def subtract(x_BD: Tensor, codebooks: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
    """x less the named centroid of each codebook, in the type of x (bfloat16 stays bfloat16)."""
    if not codebooks:
        return x_BD
    work = _subtract_cuda if x_BD.is_cuda else _subtract
    return work(x_BD, list(codebooks), [c.to(x_BD.device) for c in codes])


def _subtract(x_BD: Tensor, codebooks: list[Tensor], codes: list[Tensor]) -> Tensor:
    out = x_BD.to(codebooks[0].dtype)
    for centroid_KD, code in zip(codebooks, codes, strict=True):
        out = out - centroid_KD[code.long()]
    return out.to(x_BD.dtype)


_subtract_cuda = torch.compile(_subtract, dynamic=True)  # one pass over the rows instead of one an operation
