"""RQ-Kmeans: K-means on the vectors, then on what each level leaves over (TR section 2.1.2). Seeded, deterministic.

Legend: N vectors, D dimensions, K codes, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 65536  # rows whose distances exist at one time


def assign(x_ND: Tensor, centroid_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each row and its squared distance, chunked: never N x K at once."""
    norm_K = centroid_KD.square().sum(1)
    codes, distances = [], []
    for x in x_ND.split(CHUNK):
        partial = torch.addmm(norm_K, x, centroid_KD.T, alpha=-2)
        best = partial.min(1)
        codes.append(best.indices)
        distances.append((best.values + x.square().sum(1)).clamp_min(0))
    return torch.cat(codes), torch.cat(distances)


def kmeans(x_ND: Tensor, k: int, seed: int, iterations: int = 25) -> Tensor:
    """Lloyd's algorithm from a k-means++ start on a sample; an empty cluster takes the worst-served vector.

    Ends when no vector changes its cluster, or all are centroids themselves: with fewer distinct vectors than k surplus
    centroids stay where they are. Raises ValueError on NaN or infinite input.
    """
    if not torch.isfinite(x_ND).all():
        row = int((~torch.isfinite(x_ND)).any(1).nonzero()[0])
        raise ValueError(f"vector {row} has NaN or infinite entries; repair the item representation before clustering")
    generator = torch.Generator().manual_seed(seed)
    centroid_KD = _plus_plus(x_ND, k, generator)
    noise_N = 64 * torch.finfo(x_ND.dtype).eps * x_ND.square().sum(1)  # what rounding leaves of a distance of zero
    previous = None
    for _ in range(iterations):
        code, distance = assign(x_ND, centroid_KD)
        if (distance <= noise_N).all() or (previous is not None and torch.equal(code, previous)):
            break
        count = torch.bincount(code, minlength=k)
        total = torch.zeros_like(centroid_KD).index_add_(0, code, x_ND)
        centroid_KD = torch.where(count[:, None] > 0, total / count[:, None].clamp_min(1), centroid_KD)
        empty = (count == 0).nonzero().flatten()
        worst = distance.topk(min(len(empty), len(distance))).indices
        worst = worst[distance[worst] > noise_N[worst]]
        centroid_KD[empty[: len(worst)]] = x_ND[worst]
        previous = code if not len(worst) else None
    return centroid_KD


def _plus_plus(x_ND: Tensor, k: int, generator: torch.Generator) -> Tensor:
    sample = x_ND[torch.randperm(len(x_ND), generator=generator)[: max(64 * k, 4096)]]
    chosen = [sample[0]]
    distance = (sample - chosen[0]).square().sum(1)
    for _ in range(1, k):
        total = float(distance.sum())
        if total <= 0:  # every vector is a centroid already
            at = int(torch.randint(len(sample), (1,), generator=generator))
        else:
            at = int(torch.multinomial(distance, 1, generator=generator))
        chosen.append(sample[at])
        distance = torch.minimum(distance, (sample - sample[at]).square().sum(1))
    return torch.stack(chosen)


def fit(x_ND: Tensor, levels: int, k: int, seed: int) -> list[Tensor]:
    """Codebooks [K, D] of each level; level l is fitted on the residuals of the levels before."""
    residual, codebooks = x_ND.clone(), []
    for level in range(levels):
        codebooks.append(kmeans(residual, k, seed + level))
        residual -= codebooks[-1][assign(residual, codebooks[-1])[0]]
    return codebooks


def encode(x_ND: Tensor, codebooks: list[Tensor]) -> Tensor:
    """Code tuples [N, L]: greedy nearest centroid of each level's residual."""
    residual, codes = x_ND.clone(), []
    for centroid_KD in codebooks:
        code, _ = assign(residual, centroid_KD)
        codes.append(code)
        residual -= centroid_KD[code]
    return torch.stack(codes, 1)


def decode(codes_NL: Tensor, codebooks: list[Tensor]) -> Tensor:
    """Reconstruction [N, D]: the sum of the codes' centroids."""
    return sum(c[codes_NL[:, level]] for level, c in enumerate(codebooks))  # type: ignore[return-value]
