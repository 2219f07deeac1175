"""Item representations: what RQ-Kmeans clusters. `represent` is the one entry point of the tokenizer step.

    tensors, vectors = represent(items, config=RepresentationConfig(), users=users, liked=liked, seed=0)   # a fit
    _, vectors = represent(new_items, previous=tensors)                                                   # a later day

Two kinds, told apart by their configuration and, once frozen, by their tensors:
- "svd" (`RepresentationConfig`, here): content (tags, author, text) beside collaborative signal (PPMI-SVD of positive
  co-occurrence), within seconds;
- "aligned" (`AlignedConfig`, aligned.py): multimodal content tokens through a QFormer aligned on item pairs.

Svd: the collaborative half is fitted on training interactions; a ridge map from content stands in for items nobody has
liked yet, so that every item, also one with nothing but an author, gets a vector. Both halves have unit norm scaled by
their weight. Content features are hashed, so the frozen representation codes items and words it has never seen.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from models.tokenizer.aligned import ABOUT, AlignedConfig, AlignedRepresentation, aligned_small
from models.tokenizer.content.items import TEXT_FIELDS, read_items
from models.tokenizer.ppmi import ppmi

CONTENT_BUCKETS = 4096
_WORD = re.compile(r"\w+", re.UNICODE)
_FIELD_WEIGHT = {"tag": 2.0, "author": 1.0, "word": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """`collaborative_weight` against content's 1.0; dimensions after the two truncated SVDs."""

    content_dim: int = 32
    collaborative_dim: int = 64
    collaborative_weight: float = 2.0
    ridge: float = 1.0


def named_config(kind: str) -> RepresentationConfig | AlignedConfig:
    """The configuration of a kind as a person names it: "svd", "aligned" (4 x 512) or "aligned_small" (4 x 64)."""
    kinds: dict[str, Callable[[], RepresentationConfig | AlignedConfig]]
    kinds = {"svd": RepresentationConfig, "aligned": AlignedConfig, "aligned_small": aligned_small}
    if kind not in kinds:
        raise ValueError(f"unknown representation {kind!r}; choose from {', '.join(kinds)}")
    return kinds[kind]()


_NOBODY = np.empty(0, np.int64)


def represent(
    items: pa.Table,
    *,
    config: RepresentationConfig | AlignedConfig = RepresentationConfig(),
    users: np.ndarray = _NOBODY,
    liked: np.ndarray = _NOBODY,
    previous: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The frozen representation's tensors and the vectors [N, D] float32 of `items` (rows of the items table).

    previous: the frozen tensors; then nothing is fitted, `config`, `users` and `liked` are not read, and the cost is
    that of `items`, so hand over the new ones only. None: fit on the positives (users, rows of `items`), which stand in
    time order within a user. folder: where an interrupted alignment goes on.
    """
    if previous is not None:
        if ABOUT in previous:
            return previous, AlignedRepresentation(previous).vectors(items, progress)
        return previous, Representation(previous).content_only(_content_of(items))
    if isinstance(config, AlignedConfig):
        fitted, vectors = AlignedRepresentation.fit(
            config, items, users, liked, seed=seed, folder=folder, progress=progress
        )
        return fitted.tensors, vectors
    svd, vectors = Representation.fit(config, _content_of(items), users, liked, seed)
    return svd.tensors, vectors


def _content_of(items: pa.Table) -> sp.csr_matrix:
    rows = read_items(items)
    texts = [" ".join(filter(None, (getattr(i, f) for f in TEXT_FIELDS))) for i in rows]
    return content_matrix([list(i.tags) for i in rows], np.array([i.author for i in rows], np.int64), texts)


def content_matrix(tags: list[list[int]], authors: np.ndarray, texts: list[str]) -> sp.csr_matrix:
    """Hashed bag of features [N, CONTENT_BUCKETS]; each row has unit norm unless the item has no content at all."""
    rows, cols, values = [], [], []
    for i, (item_tags, author, text) in enumerate(zip(tags, authors, texts)):
        features = [("tag", str(t)) for t in item_tags] + ([("author", str(author))] if author >= 0 else [])
        features += [("word", w) for w in _WORD.findall(text.lower())]
        for kind, value in features:
            rows.append(i)
            cols.append(zlib.crc32(f"{kind}|{value}".encode()) % CONTENT_BUCKETS)
            values.append(_FIELD_WEIGHT[kind])
    x = sp.csr_matrix((values, (rows, cols)), shape=(len(tags), CONTENT_BUCKETS), dtype=np.float64)
    norm = np.sqrt(np.asarray(x.multiply(x).sum(1)).ravel())
    return sp.diags(1.0 / np.maximum(norm, 1e-12)) @ x


class Representation:
    """Frozen after `fit`; `content_only` serves items that arrive later."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors

    @classmethod
    def fit(
        cls, config: RepresentationConfig, content_NF: sp.csr_matrix, users: np.ndarray, items: np.ndarray, seed: int
    ) -> tuple[Representation, np.ndarray]:
        """Fit both halves; returns the representation and the vectors [N, content_dim + collaborative_dim] float32."""
        N = content_NF.shape[0]
        dim = max(1, min(config.content_dim, N - 1))
        _, _, components = randomized_svd(content_NF, dim, random_state=seed)
        content = _unit(content_NF @ components.T)
        association = ppmi(users, items, N) if len(users) else sp.csr_matrix((N, N))
        collaborative_dim = max(1, min(config.collaborative_dim, N - 1))
        if association.nnz:
            u, s, _ = randomized_svd(association, collaborative_dim, random_state=seed)
            collaborative = _unit(u * np.sqrt(s))
        else:
            collaborative = np.zeros((N, collaborative_dim))
        known = np.diff(association.indptr) > 0  # by the data: the SVD leaves rounding noise in empty rows
        a = content[known]
        ridge = np.linalg.solve(a.T @ a + config.ridge * np.eye(dim), a.T @ collaborative[known])
        collaborative[~known] = _unit(content[~known] @ ridge)
        weight = np.array([config.collaborative_weight])
        vectors = np.concatenate([content, weight * collaborative], 1).astype(np.float32)
        tensors = {
            "components": components.astype(np.float32),
            "ridge": ridge.astype(np.float32),
            "weight": weight.astype(np.float32),
        }
        return cls(tensors), vectors

    def content_only(self, content_NF: sp.csr_matrix) -> np.ndarray:
        """Vectors of items without interactions, in the same space, from the frozen maps."""
        content = _unit(content_NF @ self.tensors["components"].T)
        collaborative = _unit(content @ self.tensors["ridge"])
        return np.concatenate([content, self.tensors["weight"] * collaborative], 1).astype(np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
