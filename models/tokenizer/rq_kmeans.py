"""RQ-Kmeans: K-means on the vectors, then on what each level leaves over (TR section 2.1.2).

    codebooks = fit(x_ND, levels=3, k=8192, seed=0)         # or fit(ParquetVectors([...], "embedding"), ...)
    codes_NL = encode(x_ND, codebooks)

Seeded and deterministic on one device. Memory beside the vectors: 4 bytes an item and level, and one chunk.

Legend: N vectors, D dimensions, K codes, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.tokenizer.assign import assign
from models.tokenizer.balanced import balanced_kmeans
from models.tokenizer.kmeans import kmeans
from models.tokenizer.vectors import InMemory, Residuals, Vectors, subtract

VARIANTS = ("plain", "balanced")


def fit(
    x_ND: Tensor | Vectors,
    levels: int,
    k: int,
    seed: int,
    *,
    iterations: int = 25,
    variant: str = "plain",
    initial: Sequence[Tensor] | None = None,
    shared: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Tensor]:
    """Codebooks [K, D] of each level; level l is fitted on the residuals of the levels before.

    variant: plain K-means, or balanced as in V1 (in memory, one process). initial: codebooks to start from.
    shared: processes of torch.distributed fit together, each with its own rows. The input is not changed.
    Raises ValueError on an unknown variant, no vectors, and NaN or infinite ones.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    vectors = InMemory(x_ND) if isinstance(x_ND, Tensor) else x_ND
    if variant == "balanced" and (shared or initial is not None):
        raise ValueError("balanced K-means is fitted by one process from random centroids; choose variant plain")
    if variant == "balanced" and not len(vectors):
        raise ValueError("no vectors: K-means has nothing to cluster; check that the items table is not empty")
    codebooks: list[Tensor] = []
    codes: list[Tensor] = []
    for level in range(levels):
        residuals = Residuals(vectors, codebooks, codes)
        if variant == "balanced":
            x_left = torch.cat(list(residuals.chunks()))
            centroid_KD = balanced_kmeans(x_left, k, seed + level)[0]
            code_N = assign(x_left, centroid_KD)[0].int()  # the next level is fitted on what `encode` leaves over
        else:
            centroid_KD, code_N = kmeans(
                residuals,
                k,
                seed + level,
                iterations=iterations,
                initial=initial[level] if initial is not None else None,
                shared=shared,
            )
        codebooks.append(centroid_KD)
        codes.append(code_N)
        progress(f"level {level + 1} of {levels}: {k:,} codes fitted on {len(vectors):,} vectors")
    return codebooks


def encode(x_ND: Tensor | Vectors, codebooks: Sequence[Tensor]) -> Tensor:
    """Code tuples [N, L] int64: greedy nearest centroid of each level's residual. Reads a source once."""
    vectors = InMemory(x_ND) if isinstance(x_ND, Tensor) else x_ND
    out = [torch.empty(0, len(codebooks), dtype=torch.int64, device=vectors.device)]
    for x in vectors.chunks():
        codes: list[Tensor] = []
        for level, centroid_KD in enumerate(codebooks):
            codes.append(assign(subtract(x, codebooks[:level], codes), centroid_KD)[0])
        out.append(torch.stack(codes, 1))
    return torch.cat(out)


def decode(codes_NL: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Reconstruction [N, D]: the sum of the codes' centroids."""
    return sum(c[codes_NL[:, level]] for level, c in enumerate(codebooks))  # type: ignore[return-value]
