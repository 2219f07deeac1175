"""Lloyd's iterations on a CPU without most of the distances: bounds say for which rows nothing can have changed.

    bounds = Bounds(len(vectors), centroid_KD)
    bounds.moved(new_centroid_KD, code_N)                       # once an iteration
    code_B, distance_B = bounds.assign(x_BD, norm_B, here)      # the rows of a chunk, as `assign` gives them

Kept of a row: at most how far its own centroid is, and at least how far every other one. A centroid that moved by m
changes a distance by m at most (triangle inequality: Hamerly 2010). One far-moving centroid would spoil the lower bound
of all rows, so the farthest movers are compared with every row, and the bound only gives way to the rest; how many is
chosen in each iteration by what it would cost. Rows whose bounds cross are compared with all centroids. The codes are
those of a whole comparison; bounds are widened by what rounding may have got wrong.

Memory: 8 bytes a row. Legend: N rows, B rows of a chunk, D dimensions, K centroids, T centroids compared with all rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.tokenizer.assign import SCORES, nearest

WORTH = 0.8  # share of a whole comparison up to which the bounds are used
TRIED = (0, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8)  # shares of the centroids to compare with all rows


class Bounds:
    """`stale`: distances of skipped rows are those of an earlier pass."""

    def __init__(self, rows: int, centroid_KD: Tensor) -> None:
        self.centroid_KD, kind = centroid_KD, centroid_KD.dtype
        self.upper_N, self.lower_N = torch.full((rows,), torch.inf, dtype=kind), torch.zeros(rows, dtype=kind)
        self.distance_N, self.code_N = torch.empty(rows, dtype=kind), torch.zeros(rows, dtype=torch.int64)
        self.first_T: Tensor | None = None
        self.stale = False

    def moved(self, centroid_KD: Tensor, code_N: Tensor, whole: bool) -> None:
        """Take the new centroids. `whole`: compare all with all, bounds or not (as on the first pass)."""
        drift_K = (centroid_KD - self.centroid_KD).norm(dim=1) * (1 + 1e-5)
        self.centroid_KD, self.code_N = centroid_KD.clone(), code_N.long()
        self.first_T, self.stale = None, False
        if whole or not len(code_N):
            return
        self.upper_N += drift_K[self.code_N]
        order, K = drift_K.argsort(descending=True), len(drift_K)
        slack_N = self.lower_N - self.upper_N
        tried = [(share + float((slack_N <= drift_K[order[int(share * K)]]).float().mean()), share) for share in TRIED]
        cost, share = min(tried)
        if cost < WORTH:
            self.lower_N -= drift_K[order[int(share * K)]]
            self.first_T, self.stale = order[: int(share * K)].sort().values, True

    def assign(self, x_BD: Tensor, norm_B: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """Codes and squared distances of the rows `here`."""
        if self.first_T is None:
            rows = torch.arange(here.start, here.start + len(x_BD))
            self._whole(x_BD, norm_B, rows)
        else:
            noise_B, step = _noise(norm_B), max(1, SCORES // max(1, len(self.first_T)))
            for start in range(0, len(x_BD), step):
                part = slice(start, start + step)
                self._against_first(x_BD[part], norm_B[part], noise_B[part], here.start + start)
            crossed = (self.upper_N[here] >= self.lower_N[here]).nonzero().flatten()
            if len(crossed):
                self._whole(x_BD[crossed], norm_B[crossed], crossed + here.start)
        return self.code_N[here], self.distance_N[here].clone()

    def _against_first(self, x_BD: Tensor, norm_B: Tensor, noise_B: Tensor, start: int) -> None:
        """Bounds of rows from their distances to the centroids that moved farthest."""
        assert self.first_T is not None
        here, T = slice(start, start + len(x_BD)), len(self.first_T)
        if not T:
            return
        place_K = torch.full((len(self.centroid_KD),), -1)
        place_K[self.first_T] = torch.arange(T)
        c_TD = self.centroid_KD[self.first_T]
        x, score = x_BD.to(c_TD.dtype), torch.empty(len(x_BD), T, dtype=c_TD.dtype)
        _scores(x, (-2 * c_TD).T.contiguous(), c_TD.square().sum(1), score)
        place_B = place_K[self.code_N[here]]
        own = (place_B >= 0).nonzero().flatten()
        if len(own):
            distance = score[own, place_B[own]] + norm_B[own]
            self.upper_N[here][own] = (distance + noise_B[own]).clamp_min_(0).sqrt_()
            self.distance_N[here][own] = distance.clamp_min_(0)
            score[own, place_B[own]] = torch.inf
        least = torch.from_numpy(score.numpy().min(1)) + norm_B - noise_B
        torch.minimum(self.lower_N[here], least.clamp_min_(0).sqrt_(), out=self.lower_N[here])

    def _whole(self, x_BD: Tensor, norm_B: Tensor, row_B: Tensor) -> None:
        """Codes, distances and bounds of rows, from all centroids."""
        c = self.centroid_KD
        norm_K, twice_DK, step = c.square().sum(1), (-2 * c).T.contiguous(), max(1, SCORES // len(c))
        noise_B = _noise(norm_B)
        scores = torch.empty(min(step, len(x_BD)), len(c), dtype=c.dtype)
        for start in range(0, len(x_BD), step):
            part = slice(start, start + step)
            x, row = x_BD[part].to(c.dtype), row_B[part]
            score = _scores(x, twice_DK, norm_K, scores[: len(x)])
            best, value = nearest(score)
            distance = torch.from_numpy(value) + norm_B[part]
            score[np.arange(len(x)), best] = np.inf
            second = torch.from_numpy(score.min(1)) + norm_B[part]
            self.code_N[row], self.distance_N[row] = torch.from_numpy(best), distance.clamp(min=0)
            self.upper_N[row] = (distance + noise_B[part]).clamp_min_(0).sqrt_()
            self.lower_N[row] = (second - noise_B[part]).clamp_min_(0).sqrt_()


def _scores(x_BD: Tensor, twice_DK: Tensor, norm_K: Tensor, out_BK: Tensor) -> np.ndarray:
    """|c|^2 - 2 x c on a CPU, into `out`. NumPy's product takes an eighth less time than torch's (AMD EPYC)."""
    score_BK = out_BK.numpy()
    np.matmul(x_BD.numpy(), twice_DK.numpy(), out=score_BK)
    score_BK += norm_K.numpy()
    return score_BK


def _noise(norm_B: Tensor) -> Tensor:
    """What rounding may have got wrong of a squared distance."""
    return 64 * torch.finfo(norm_B.dtype).eps * norm_B
