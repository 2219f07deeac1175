"""K-means over vectors in memory or in files, on one device or several: Lloyd's iterations with repaired clusters.

    centroid_KD, code_N = kmeans(InMemory(x_ND), k=8192, seed=0)

Start: k-means++ in rounds, on a sample. An empty cluster takes the worst-served vector. With `torch.distributed` each
process holds its own rows; sums and counts are added over all of them, and every process ends with the same centroids.
Seeded, and deterministic on one device. Sources: Lloyd 1982; Arthur and Vassilvitskii 2007; rounds as in Bahmani 2012.

Legend: N vectors of this process, D dimensions, K centroids, S sampled rows, B rows of a chunk.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from models.tokenizer.assign import assign, squared_norms
from models.tokenizer.bounds import Bounds
from models.tokenizer.vectors import Vectors

SAMPLE, MIN_SAMPLE = 8, 2048  # sampled rows a centroid, and at least
GREEDY, ROUNDS = 256, 32  # up to so many codes k-means++ draws one by one, above in so many rounds
BOUNDS_DIM = 192  # dimensions from which on keeping bounds costs a CPU less than the distances they save
LAST_REPAIRS = 3  # passes after the last iteration that only fill empty clusters


class Peers:
    """The processes that share a fit; without torch.distributed this one alone."""

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up in place."""
        if self.shared:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """[...] -> [processes, ...]"""
        if not self.shared:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def same(self, tensor: Tensor) -> Tensor:
        """The first process's copy, everywhere."""
        if self.shared:
            dist.broadcast(tensor, 0)
        return tensor


def kmeans(
    vectors: Vectors, k: int, seed: int, *, iterations: int = 25, initial: Tensor | None = None, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Centroids [K, D] float32 (float64 for float64 vectors) and the nearest one of each row, [N] int32.

    initial: start from these centroids. shared: the default group of torch.distributed fits together.
    Ends when no vector changes its cluster. With fewer distinct vectors than k (duplicates, constant input) the surplus
    centroids stay copies and no vector is in them. Raises ValueError on no vectors and on NaN or infinite ones.
    """
    peers = Peers(shared)
    lengths = peers.gather(torch.tensor([len(vectors)], device=vectors.device)).flatten()
    if not int(lengths.sum()):
        raise ValueError("no vectors: K-means has nothing to cluster; check that the items table is not empty")
    offset = int(lengths[: peers.rank].sum())
    centroid_KD = _start(vectors, k, seed, offset, int(lengths.sum()), peers) if initial is None else initial.clone()
    centroid_KD = peers.same(centroid_KD.to(vectors.device))
    code_N = torch.empty(len(vectors), dtype=torch.int32, device=vectors.device)
    norm_N = torch.full((len(vectors),), torch.nan, dtype=centroid_KD.dtype, device=vectors.device)  # found in pass one
    distance_N = torch.empty(len(vectors), dtype=centroid_KD.dtype, device=vectors.device)
    settled = False  # the centroids are the means of the codes that the pass before found
    saves = centroid_KD.device.type == "cpu" and vectors.dim >= BOUNDS_DIM
    bounds = Bounds(len(vectors), centroid_KD) if saves else None
    whole = True  # the next pass compares every row with every centroid
    for iteration in range(iterations + LAST_REPAIRS + 1):
        if bounds is not None:
            bounds.moved(centroid_KD, code_N, whole)
        state = (code_N, distance_N, norm_N, iteration == 0, peers, bounds)
        total_KD, count_K, moved, off = _pass(vectors, centroid_KD, *state)
        if iteration == iterations + LAST_REPAIRS or not off:
            break
        empty = (count_K == 0).nonzero().flatten()
        if bounds is not None and bounds.stale and len(empty):  # the worst-served row is found by distances of today
            bounds.moved(centroid_KD, code_N, True)
            _pass(vectors, centroid_KD, *state)
        whole = len(empty) > 0
        worst_ED = _worst(vectors, distance_N, len(empty), peers)
        last = iteration >= iterations
        if not len(worst_ED) and (last or (settled and not moved)):
            break
        if not last:
            mean_KD = total_KD / count_K[:, None].clamp_min(1)
            centroid_KD = torch.where(count_K[:, None] > 0, mean_KD, centroid_KD)
        centroid_KD[empty[: len(worst_ED)]] = worst_ED
        settled = not len(worst_ED)
    return centroid_KD, code_N


def _pass(
    vectors: Vectors,
    centroid_KD: Tensor,
    code_N: Tensor,
    distance_N: Tensor,
    norm_N: Tensor,
    first: bool,
    peers: Peers,
    bounds: Bounds | None,
) -> tuple[Tensor, Tensor, int, int]:
    """Assign every row (codes and distances are written in place); sums and counts of all processes,
    how many rows changed their code, and how many lie off their centroid by more than rounding."""
    K = len(centroid_KD)
    total_KD, count_K = torch.zeros_like(centroid_KD), torch.zeros(K, dtype=torch.int64, device=centroid_KD.device)
    news = torch.zeros(3, dtype=torch.int64, device=centroid_KD.device)
    start = 0
    for x in vectors.chunks():
        here = slice(start, start + len(x))
        if first:
            norm_N[here] = squared_norms(x, norm_N.dtype)
        if bounds is None:
            code, distance = assign(x, centroid_KD, norm_N[here])
        else:
            code, distance = bounds.assign(x, norm_N[here], here)
        distance[distance <= 64 * torch.finfo(distance.dtype).eps * norm_N[here]] = 0  # what rounding leaves of zero
        news[0] += (code_N[here] != code).sum()
        news[1] += (distance > 0).sum()
        news[2] += (~torch.isfinite(distance)).sum()
        code_N[here], distance_N[here] = code.int(), distance
        total_KD += _sums(x, code, K, centroid_KD.dtype)
        count_K += torch.bincount(code, minlength=K)
        start += len(x)
    peers.sum_(total_KD), peers.sum_(count_K), peers.sum_(news)
    if int(news[2]):
        rows = (~torch.isfinite(distance_N)).nonzero().flatten()
        where = f"vector {int(rows[0])} has" if len(rows) else "vectors of another process have"
        raise ValueError(f"{where} NaN or infinite entries; repair the item representation before clustering")
    return total_KD, count_K, int(news[0]), int(news[1])


def _sums(x_BD: Tensor, code_B: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    if x_BD.is_cuda and dtype == torch.float32:
        from models.tokenizer.cuda_kernels import cluster_sums

        return cluster_sums(x_BD, code_B, k)
    if x_BD.is_cuda:
        return torch.zeros(k, x_BD.shape[1], dtype=dtype, device=x_BD.device).index_add_(0, code_B, x_BD.to(dtype))
    import scipy.sparse

    x_BD = x_BD.to(dtype)  # as a product with the sparse table of codes: a third of the time of index_add
    one = np.ones(len(x_BD), x_BD.numpy().dtype)
    member = scipy.sparse.csr_matrix((one, code_B.numpy(), np.arange(len(x_BD) + 1)), shape=(len(x_BD), k))
    return torch.from_numpy(member.T @ x_BD.numpy())


def _worst(vectors: Vectors, distance_N: Tensor, wanted: int, peers: Peers) -> Tensor:
    """Up to `wanted` distinct rows of all processes that are farthest from their centroids, none of distance 0."""
    if not wanted:
        return distance_N.new_empty(0, vectors.dim)
    asked = max(4 * wanted, 64)  # some may be copies of each other
    own = distance_N.topk(min(asked, len(distance_N)))
    padded = distance_N.new_zeros(asked)
    padded[: len(own.values)] = own.values
    every = peers.gather(padded).flatten()
    value, slot = every.sort(descending=True, stable=True)
    slot = slot[:asked][value[:asked] > 0]
    mine = (slot // asked == peers.rank).nonzero().flatten()
    index = own.indices[slot[mine] % asked]
    ascending = index.argsort()
    rows = torch.zeros(len(slot), vectors.dim, dtype=distance_N.dtype, device=distance_N.device)
    if len(mine):
        rows[mine[ascending]] = vectors.rows(index[ascending]).to(rows)
    peers.sum_(rows)
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(rows) + 1,), len(rows), device=rows.device).scatter_reduce(
        0, group, torch.arange(len(rows), device=rows.device), "amin"
    )
    return rows[first[first < len(rows)].sort().values[:wanted]]


def _start(vectors: Vectors, k: int, seed: int, offset: int, N: int, peers: Peers) -> Tensor:
    """k-means++ on a sample: each round draws rows with probability in proportion to the squared distance to what was
    drawn before: the best of several where it needs but one (greedy k-means++), or k/ROUNDS at once.
    Random numbers are drawn on the CPU, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    S = min(N, max(SAMPLE * k, MIN_SAMPLE))
    if N <= 4 * S:
        chosen = torch.randperm(N, generator=generator)[:S].sort().values
    else:
        chosen = torch.randint(N, (S,), generator=generator).unique()
    mine = (chosen >= offset) & (chosen < offset + len(vectors))
    rows = vectors.rows(chosen[mine] - offset)
    work = torch.float64 if rows.dtype == torch.float64 else torch.float32
    sample_SD = torch.zeros(len(chosen), vectors.dim, dtype=work, device=vectors.device)
    sample_SD[mine.to(sample_SD.device)] = rows.to(work)
    peers.sum_(sample_SD)
    if not bool(torch.isfinite(sample_SD).all()):
        row = int(chosen[(~torch.isfinite(sample_SD)).any(1).nonzero()[0].cpu()])
        raise ValueError(f"vector {row} has NaN or infinite entries; repair the item representation before clustering")
    picked = [int(torch.randint(len(chosen), (1,), generator=generator))]
    norm_S = sample_SD.square().sum(1)
    noise_S = 64 * torch.finfo(work).eps * norm_S

    def to(rows: list[int]) -> Tensor:
        """Squared distances [C, S] of all sampled rows to some of them."""
        return torch.addmm(norm_S + norm_S[rows][:, None], sample_SD[rows], sample_SD.T, alpha=-2)

    distance_S = to(picked)[0]
    for share in torch.arange(k - 1).tensor_split(max(k - 1, 1) if k <= GREEDY else ROUNDS):
        weight = torch.where(distance_S > noise_S, distance_S, 0).double().cpu()
        weight[picked] = 0
        tries = len(share) if len(share) > 1 else 2 + int(math.log(k))
        drawn = min(tries, int((weight > 0).sum()))
        new = torch.multinomial(weight, drawn, generator=generator).tolist() if drawn else []
        if drawn:
            left_CS = torch.minimum(distance_S, to(new))
            if drawn > len(share):
                best = int(left_CS.sum(1).argmin())
                new, left_CS = [new[best]], left_CS[best : best + 1]
            distance_S = left_CS.amin(0)
        drawn = min(drawn, len(share))
        new += torch.randint(len(chosen), (len(share) - drawn,), generator=generator).tolist()  # copies: all is covered
        picked += new
    return sample_SD[picked]
