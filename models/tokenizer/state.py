"""A tokenizer in memory: codebooks, the frozen representation, and the IDs of the catalogue; its files.

    state = TokenizerState.load(release / "tokenizer")
    state.save(out, seed)

Files: tokenizer.json, codebooks.safetensors (with the representation), sid_table.parquet (item_id, c0, c1, c2, content
digest; in catalogue order, new items appended), trie.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file

from models.tokenizer import rq_kmeans
from models.tokenizer.sid_table import LEVEL_COLUMNS
from models.tokenizer.trie import Trie

LEVELS = len(LEVEL_COLUMNS)
MIN_CODEBOOK, MAX_CODEBOOK = 16, 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerState:
    """`codes` [N, 3] of `ids`, with the digest of the content they were made from; `fit`: what
    tokenizer.json keeps of the fit and of the errors since."""

    books: list[np.ndarray]
    representation: dict[str, np.ndarray]
    ids: np.ndarray
    codes: np.ndarray
    content: np.ndarray
    fit: dict[str, float]

    @classmethod
    def load(cls, directory: Path) -> TokenizerState:
        """Read a tokenizer folder. Raises ValueError for one that an earlier version wrote."""
        tensors = load_file(directory / "codebooks.safetensors")
        books = [tensors.pop(f"codebook_{i}") for i in range(LEVELS)]
        table = pq.read_table(directory / "sid_table.parquet")
        if "content" not in table.column_names:
            raise ValueError(
                f"{directory} is a tokenizer of an earlier layout, without digests of the items' content; bootstrap the"
                " first day after the upgrade in an empty workspace"
            )
        return cls(
            books=books,
            representation=tensors,
            ids=table["item_id"].to_numpy(),
            codes=np.stack([table[c].to_numpy() for c in LEVEL_COLUMNS], 1).astype(np.int64),
            content=table["content"].to_numpy(),
            fit=json.loads((directory / "tokenizer.json").read_text())["fit"],
        )

    def save(self, out: Path, seed: int) -> None:
        """Write sid_table.parquet, codebooks.safetensors, trie.safetensors and tokenizer.json into `out`."""
        size = len(self.books[0])
        columns = {c: pa.array(self.codes[:, i], pa.int32()) for i, c in enumerate(LEVEL_COLUMNS)}
        columns |= {"content": pa.array(self.content, pa.uint64())}
        pq.write_table(pa.table({"item_id": pa.array(self.ids, pa.int64()), **columns}), out / "sid_table.parquet")
        books = {f"codebook_{i}": np.ascontiguousarray(b) for i, b in enumerate(self.books)}
        save_file({**books, **self.representation}, out / "codebooks.safetensors")
        Trie.build(self.codes, size).save(out / "trie.safetensors")
        about = {"levels": LEVELS, "codebook_size": size, "items": len(self.ids), "seed": seed, "fit": self.fit}
        (out / "tokenizer.json").write_text(json.dumps(about, indent=1) + "\n")

    @property
    def drift(self) -> float | None:
        """Error of the items since the fit over that of held-out ones; None while either is unknown."""
        f = self.fit
        if not f["held_out_error"] or not f["items_since"]:
            return None
        return f["error_since"] / f["items_since"] / f["held_out_error"]


def codebook_size_for(items: int) -> int:
    """Power of two whose square is at least the catalogue: two levels nearly tell items apart. 8192 as published."""
    size = MIN_CODEBOOK
    while size * size < items and size < MAX_CODEBOOK:
        size *= 2
    return size


def encode(vectors: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    return rq_kmeans.encode(torch.from_numpy(vectors), [torch.from_numpy(b) for b in books]).numpy()


def decode(codes: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    return np.sum([b[codes[:, i]] for i, b in enumerate(books)], axis=0)


def errors(vectors: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    """Squared error of each vector under its nearest codes."""
    return np.square(vectors - decode(encode(vectors, books), books)).sum(1)
