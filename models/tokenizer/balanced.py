"""Balanced K-means of OneRec V1 (arXiv 2502.18965, algorithm 1): every cluster holds N/K vectors.

    centroid_KD, code_N = balanced_kmeans(x_ND, k=256, seed=0)

Random centroids; then, again and again, each centroid in turn takes its w = N/K nearest vectors of those that are left
and becomes their mean, until no vector changes its cluster. The first N mod K centroids take one vector more, so that
none is left over. In memory only: every pass compares all vectors with all centroids.

Legend: N vectors, D dimensions, K centroids, B centroids whose distances exist at one time.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64


def balanced_kmeans(x_ND: Tensor, k: int, seed: int, *, iterations: int = 25) -> tuple[Tensor, Tensor]:
    """Centroids [K, D] and codes [N] int32. With fewer vectors than centroids the surplus ones stay where they began.

    Raises ValueError on no vectors and on NaN or infinite ones.
    """
    N = len(x_ND)
    if not bool(torch.isfinite(x_ND).all()):
        row = int((~torch.isfinite(x_ND)).any(1).nonzero()[0])
        raise ValueError(f"vector {row} has NaN or infinite entries; repair the item representation before clustering")
    generator = torch.Generator().manual_seed(seed)
    begin = torch.cat([torch.randperm(N, generator=generator) for _ in range(-(-k // N))])[:k]
    centroid_KD = x_ND[begin.to(x_ND.device)].clone()
    size = [N // k + (i < N % k) for i in range(k)]
    code_N = torch.full((N,), -1, dtype=torch.int32, device=x_ND.device)
    norm_N = x_ND.square().sum(1)
    for _ in range(iterations):
        previous, code_N = code_N, torch.full_like(code_N, -1)
        for start in range(0, k, BLOCK):
            c_BD = centroid_KD[start : start + BLOCK].clone()  # a centroid is compared before it moves
            distance_BN = (norm_N + c_BD.square().sum(1)[:, None]).addmm_(c_BD, x_ND.T, alpha=-2)
            for code, distance_N in enumerate(distance_BN, start):
                if size[code]:
                    distance_N = distance_N.masked_fill(code_N >= 0, torch.inf)
                    taken = distance_N.topk(size[code], largest=False).indices
                    code_N[taken] = code
                    centroid_KD[code] = x_ND[taken].mean(0)
        if torch.equal(code_N, previous):
            break
    return centroid_KD, code_N
