"""Nearest centroid of each vector, never with all vectors x centroids in memory.

    code_N, distance_N = assign(x_ND, centroid_KD)

On CPU, in float64, and for small problems: matrix products in the centroids' type, a bounded number of scores at a
time. On CUDA at codebook sizes worth it: one fused kernel (cuda_kernels.py) multiplies in bfloat16, adds in float32 and
keeps only the best score of every 256 centroids; wherever a second candidate comes within what bfloat16 can have got
wrong, the candidates are compared again in float32 (measured: benchmarks/tokenizer/assign_speed.md).

Legend: N vectors, D dimensions, K centroids, T tiles of 256 centroids, R rows that are compared again, C candidates.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SCORES = 1 << 19  # scores that exist at one time on CPU: they stay in the cache
SCORES_CUDA = 1 << 28
FAST_CODES, FAST_DIM = 512, 64  # from this size on the fused kernel is used
CANDIDATES, REFINE_ROWS = 4, 8192
# Two scores closer than this times |x| max|c| / sqrt(D) may be in the wrong order: bfloat16 rounds each factor to
# 2^-9 at most, and D roundings add up as a random walk; three standard deviations of their difference.
MARGIN = 3 * 2.0**-8
PACKED = 2.0**-14  # relative error of a score whose low bits carry an index


def assign(x_ND: Tensor, centroid_KD: Tensor, norm_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Index of the nearest centroid [N] int64 and its squared Euclidean distance [N] (TR section 2.1.2).

    norm_N: the squared norms, if they are known. Of equally near centroids any may be named. Distances of the fused
    kernel carry bfloat16's rounding where the choice was clear; codes agree with float32 for 99.9 % of the vectors,
    others lie within 1e-3 of the least distance.
    """
    if norm_N is None:
        norm_N = squared_norms(x_ND, centroid_KD.dtype)
    if x_ND.is_cuda and centroid_KD.dtype == torch.float32:
        K, D = centroid_KD.shape
        if K >= FAST_CODES and D >= FAST_DIM:
            return _fused(x_ND, centroid_KD, norm_N)
    return _plain(x_ND, centroid_KD, norm_N)


def _plain(x_ND: Tensor, centroid_KD: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]:
    norm_K, twice_DK = centroid_KD.square().sum(1), (-2 * centroid_KD).T.contiguous()
    N, K, device = len(x_ND), len(centroid_KD), x_ND.device
    rows = max(1, (SCORES_CUDA if x_ND.is_cuda else SCORES) // K)
    code = torch.empty(N, dtype=torch.int64, device=device)
    distance = torch.empty(N, dtype=centroid_KD.dtype, device=device)
    scores = torch.empty(min(rows, N), K, dtype=centroid_KD.dtype, device=device)
    if not x_ND.is_cuda:  # behind each vector a one: the product adds the norms, cheaper than a pass over the scores
        one_BD = np.ones((len(scores), x_ND.shape[1] + 1), scores.numpy().dtype)
        norm_DK = np.concatenate([twice_DK.numpy(), norm_K.numpy()[None]])
    for start in range(0, N, rows):
        x = x_ND[start : start + rows].detach()
        score, here = scores[: len(x)], slice(start, start + len(x))
        if x.is_cuda:
            torch.addmm(norm_K, x.to(centroid_KD.dtype), twice_DK, out=score)
            code[here] = score.argmin(1)
            distance[here] = score.gather(1, code[here, None])[:, 0]
        else:
            one_BD[: len(x), :-1] = x.to(centroid_KD.dtype).numpy()
            score_BK = np.matmul(one_BD[: len(x)], norm_DK, out=score.numpy())  # an eighth less time than torch's
            code.numpy()[here], distance.numpy()[here] = nearest(score_BK)
    return code, distance.add_(norm_N).clamp_min_(0)


def nearest(score_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place and value of the least score of each row. NumPy's argmin takes a sixth of the time of torch's on a CPU."""
    B, K = score_BK.shape
    best_B = score_BK.argmin(1)
    return best_B, score_BK.reshape(-1).take(best_B + np.arange(0, B * K, K))


def _fused(x_ND: Tensor, centroid_KD: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]:
    from models.tokenizer import cuda_kernels

    half_K = centroid_KD.square().sum(1) / 2
    packed_TN = cuda_kernels.tile_best(x_ND.bfloat16(), centroid_KD.bfloat16(), half_K)
    code, score = decide(packed_TN, x_ND, centroid_KD, half_K, norm_N, cuda_kernels.TILE)
    return code, (norm_N - 2 * score).clamp_min_(0)


def decide(
    packed_TN: Tensor, x_ND: Tensor, centroid_KD: Tensor, half_K: Tensor, norm_N: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Code [N] and score x c - |c|^2/2 [N] from the best score of every tile, near ties compared again in float32.

    packed_TN: float32 scores whose lowest bits (tile is a power of two) are the centroid's place in its tile.
    """
    T, D = len(packed_TN), x_ND.shape[1]
    best_N, at_N = packed_TN.max(0)
    code_N = _index(at_N, best_N, tile)
    margin_N = MARGIN * norm_N.sqrt() * (2 * half_K.max()).sqrt() / D**0.5 + PACKED * best_N.abs()
    near_N = (packed_TN >= best_N - margin_N).sum(0) > 1
    for row_R in near_N.nonzero().flatten().split(REFINE_ROWS):
        score_CR, at_CR = packed_TN[:, row_R].topk(min(CANDIDATES, T), dim=0)
        code_RC = _index(at_CR, score_CR, tile).T
        x_RD = x_ND[row_R].float()
        exact_RC = torch.einsum("rd,rcd->rc", x_RD, centroid_KD[code_RC]) - half_K[code_RC]
        best = exact_RC.max(1, keepdim=True)
        code_N[row_R] = code_RC.gather(1, best.indices)[:, 0]
        best_N[row_R] = best.values[:, 0]
    return code_N, best_N


def _index(tile_index: Tensor, packed: Tensor, tile: int) -> Tensor:
    return tile_index * tile + (packed.contiguous().view(torch.int32) & (tile - 1))


def squared_norms(x_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """|x|^2 of each row in `dtype`, in one pass over the rows whatever their type."""
    return torch.linalg.vector_norm(x_ND, dim=1, dtype=dtype).square_()
