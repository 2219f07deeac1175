"""Triton kernels of the tokenizer: the best score of every tile of centroids, and the sum of every cluster's vectors.

    packed_TN = tile_best(x_ND, centroid_KD, half_K)        # bfloat16 in, float32 out
    total_KD = cluster_sums(x_ND, code_N, K)                # deterministic: rows are added in the order of their index

`TRITON_INTERPRET=1` runs both on a CPU, slowly; tests do. Imported only where CUDA is used.

Legend: N vectors, D dimensions, K centroids, T tiles of TILE centroids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE = 256  # centroids of a tile: one column block of the product; a score carries its place in the low 8 bits
ROWS, DEPTH, GROUP, WARPS, STAGES = 128, 64, 8, 8, 3  # the fastest shape in benchmarks/tokenizer/assign_speed.md
SUM_WIDTH = 512
NEVER = 1e30  # half norm of the centroids that fill the last tile


@triton.jit
def _tile_best(
    x_desc, c_desc, half_ptr, out_ptr, N, D, tiles,
    ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One block of rows against one tile of centroids; neighbours in a group share both in the L2 cache."""
    program = tl.program_id(0)
    blocks = tl.cdiv(N, ROWS)
    first = program // (GROUP * tiles) * GROUP
    height = tl.minimum(blocks - first, GROUP)
    inside = program % (GROUP * tiles)
    row, col = (first + inside % height) * ROWS, inside // height * TILE
    acc = tl.zeros((ROWS, TILE), tl.float32)
    for k in range(0, tl.cdiv(D, DEPTH)):
        x = x_desc.load([row, k * DEPTH])
        c = c_desc.load([col, k * DEPTH])
        acc = tl.dot(x, c.T, acc)
    place = tl.arange(0, TILE)
    acc -= tl.load(half_ptr + col + place)[None, :]
    bits = (acc.to(tl.int32, bitcast=True) & -TILE) | place[None, :]
    best = tl.max(bits.to(tl.float32, bitcast=True), 1)
    n = row + tl.arange(0, ROWS)
    tl.store(out_ptr + (col // TILE).to(tl.int64) * N + n, best, mask=n < N)


def tile_best(x_ND: Tensor, centroid_KD: Tensor, half_K: Tensor) -> Tensor:
    """max of x c - half over each tile [T, N] float32; the lowest log2(TILE) bits are the place in the tile."""
    x_ND, centroid_KD = _aligned(x_ND), _aligned(centroid_KD)
    N, D = x_ND.shape
    missing = -len(centroid_KD) % TILE
    centroid_KD, half_K = F.pad(centroid_KD, (0, 0, 0, missing)), F.pad(half_K, (0, missing), value=NEVER)
    tiles = len(centroid_KD) // TILE
    out_TN = torch.empty(tiles, N, dtype=torch.float32, device=x_ND.device)
    if N:
        grid = (triton.cdiv(N, ROWS) * tiles,)
        _tile_best[grid](
            TensorDescriptor.from_tensor(x_ND, [ROWS, DEPTH]), TensorDescriptor.from_tensor(centroid_KD, [TILE, DEPTH]),
            half_K, out_TN, N, D, tiles, ROWS, TILE, DEPTH, GROUP, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out_TN


def _aligned(x_ND: Tensor) -> Tensor:
    """Rows of a multiple of 16 bytes, as the copy engine wants them; zeros change no product."""
    return F.pad(x_ND, (0, -x_ND.shape[1] % 8)).contiguous()


@triton.jit
def _cluster_sums(x_ptr, order_ptr, start_ptr, out_ptr, D, WIDTH: tl.constexpr):
    cluster = tl.program_id(0)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    acc = tl.zeros((WIDTH,), tl.float32)
    for j in range(tl.load(start_ptr + cluster), tl.load(start_ptr + cluster + 1)):
        acc += tl.load(x_ptr + tl.load(order_ptr + j) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + cluster * D + d, acc, mask=d < D)


def cluster_sums(x_ND: Tensor, code_N: Tensor, k: int) -> Tensor:
    """Sum of the vectors of each code [K, D] float32."""
    order_N = code_N.argsort(stable=True)
    start = F.pad(torch.bincount(code_N, minlength=k).cumsum(0), (1, 0))
    x_ND = x_ND.contiguous()
    out_KD = torch.empty(k, x_ND.shape[1], dtype=torch.float32, device=x_ND.device)
    grid = (k, triton.cdiv(x_ND.shape[1], SUM_WIDTH))
    _cluster_sums[grid](x_ND, order_N, start, out_KD, x_ND.shape[1], SUM_WIDTH)
    return out_KD
