"""The lifelong pathway: each user's whole history compressed by hierarchical K-means (TR section 2.2.3, after TWIN-V2).

    group_N, representative_G = compress(user_N, item_N, vector_ID)            # device="cuda": the same on a GPU

A group of n events splits into floor(cbrt(n)) clusters, at least 2, until it holds at most M events. A final group is
represented by the event nearest to its centre. The groups of all users are split level by level, many at a time, padded
to a common size, so that the work is matrix products whatever the number of users.

Every number is exact. Vectors and centres are cut to whole multiples of 1/2048, and none is longer than 1, so that
every sum, product and distance is a whole number of at most 2^24, which float32 holds without rounding. So the result
does not depend on the machine, the number of threads, the device, or the users that are clustered together (tested).
There is no randomness: K-means starts from the newest event and, again and again, the event farthest from those chosen.
A group larger than `SAMPLE` events a centre learns its centres from so many, evenly spread over its time.
A vector lies in memory as int16, half the bytes, and becomes float32 when its batch is gathered.

Needs numpy and torch only. Legend: N events of all users, I items, D content dimensions, G groups, S slots of a padded
group, K centres of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

MAX_EVENTS = 100_000  # of a user; the pathway reads no more
LONGEST = 2000  # rows of the pathway
GROUP_SIZE = 3  # M of the report, which does not publish it, for a history of up to 3000: docs/decisions/features.md
ITERATIONS = 4
SAMPLE = 32
GRID = 2048.0
CELLS = {"cpu": 1 << 20, "cuda": 1 << 28}  # numbers in a padded batch: what fits the cache, what fills the device
WASTE = {"cpu": 1.25, "cuda": 4.0}  # sizes in a batch differ by at most this factor; a GPU waits for launches, not sums


def group_limit(events: np.ndarray | int) -> np.ndarray:
    """M for a history of so many events: 3, and for long ones so many that about `LONGEST` groups tell all of it."""
    return np.maximum(GROUP_SIZE, np.asarray(events) * 2 // LONGEST)


def compress(
    user_N: np.ndarray, item_N: np.ndarray, vector_ID: np.ndarray | Tensor, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Group events of the same user by content: the group of each event [N], the representative of each group [G].

    user_N: sorted; the events of a user are oldest first. item_N: each event's row of `vector_ID`, whose rows are no
    longer than 1 (a tensor that lies on the device is not copied). Groups are numbered in order of user. Vectors that
    cannot be told apart are cut by their place in the history, so every group ends with at most M events.
    Raises ValueError for a user with more than `MAX_EVENTS` events or a vector longer than 1.
    """
    if not len(user_N):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    start_G, size_G = _runs(user_N)
    if (longest := int(size_G.max())) > MAX_EVENTS:
        raise ValueError(f"a user has {longest} events; give the newest {MAX_EVENTS} of each")
    vector_ID, row_N = torch.as_tensor(vector_ID, device=device).float(), torch.tensor(item_N, device=device)
    used_I = torch.zeros(len(vector_ID), dtype=torch.bool, device=device)
    used_I[row_N] = True
    grid, row_N = _Grid(vector_ID, torch.nonzero(used_I)[:, 0]), (torch.cumsum(used_I, 0) - 1)[row_N]
    order_N = torch.arange(len(user_N), device=device)
    limit_G = group_limit(size_G)
    while (big := np.flatnonzero(size_G > limit_G)).size:
        part_N = torch.zeros(len(order_N), dtype=torch.int64, device=device)
        for batch in _batches(size_G, big, _sample(size_G) * grid.width, grid.device):
            _split(part_N, grid, row_N, order_N, start_G[batch], size_G[batch])
        group_N = torch.repeat_interleave(torch.as_tensor(size_G, device=device))
        key_N = group_N * 64 + part_N
        key_N, place_N = torch.sort(key_N, stable=True)
        order_N = order_N[place_N]
        _, count_G = torch.unique_consecutive(key_N, return_counts=True)
        parent_G = key_N[torch.cumsum(count_G, 0) - 1] // 64
        size_G, limit_G = count_G.cpu().numpy(), limit_G[parent_G.cpu().numpy()]
        start_G = np.cumsum(size_G) - size_G
    representative_G = torch.empty(len(size_G), dtype=torch.int64, device=device)
    for batch in _batches(size_G, np.arange(len(size_G)), size_G * grid.width, grid.device):
        runs = torch.as_tensor(np.stack([start_G[batch], size_G[batch]]), device=device)
        at_GS, mask_GS = _slots(runs[0], runs[1], 0, int(size_G[batch].max()))
        row_GS = row_N[order_N[at_GS]]
        x_GSD = grid.rows(row_GS)
        count_G11 = mask_GS.sum(1)[:, None, None]
        centre_G1D = torch.trunc(torch.bmm(mask_GS.float()[:, None], x_GSD) / count_G11)
        # |x|^2 - 2 x c: the distance without the |c|^2 that all events of a group share
        product_GS = torch.bmm(centre_G1D, x_GSD.transpose(1, 2))[:, 0]
        distance_GS = (grid.norm_U[row_GS] - 2 * product_GS).masked_fill(~mask_GS, torch.inf)
        # Of equals the latest; the slots of a group are in order of time.
        best_G = distance_GS.shape[1] - 1 - distance_GS.flip(1).min(1).indices
        chosen_G = order_N[at_GS.gather(1, best_G[:, None])[:, 0]]
        representative_G[torch.as_tensor(batch, device=device)] = chosen_G
    group_N = torch.empty_like(order_N)
    group_N[order_N] = torch.repeat_interleave(torch.as_tensor(size_G, device=device))
    return group_N.cpu().numpy(), representative_G.cpu().numpy()


def _split(
    part_N: Tensor, grid: _Grid, row_N: Tensor, order_N: Tensor, start_G: np.ndarray, size_G: np.ndarray
) -> None:
    """One K-means of each group of a batch: writes the cluster of each of their events, by place, into `part_N`."""
    device, D = grid.device, grid.width
    # One transfer, and all counting on the device: a GPU is fed more slowly than it computes.
    batch = torch.as_tensor(np.stack([start_G, size_G, _split_into(size_G), _sample(size_G)]), device=device)
    most = int(_split_into(size_G).max()), int(_sample(size_G).max())
    centre_GKD, norm_GK1 = _centres(grid, row_N, order_N, batch, *most)
    turned_GKD = -2 * centre_GKD
    lowest_G = torch.full((len(size_G),), 64, device=device)
    highest_G = torch.zeros_like(lowest_G)
    step, longest = max(1, CELLS[device] // (len(size_G) * D)), int(size_G.max())
    for low in range(0, longest, step):
        # No mask: the slots behind a group hold its last event again, which gets its cluster again.
        at_GS, _ = _slots(batch[0], batch[1], low, min(longest, low + step))
        x_GSD = grid.rows(row_N[order_N[at_GS]])
        # |c|^2 - 2 x c: the distance without the |x|^2 that all centres share
        found_GS = torch.baddbmm(norm_GK1, turned_GKD, x_GSD.transpose(1, 2)).min(1).indices
        lowest_G = torch.minimum(lowest_G, found_GS.amin(1))
        highest_G = torch.maximum(highest_G, found_GS.amax(1))
        part_N[at_GS] = found_GS
    # A group that K-means left whole (equal vectors) is cut by time, or it would never end.
    for g in torch.nonzero(lowest_G == highest_G)[:, 0].tolist():
        n = int(size_G[g])
        place = torch.arange(n, device=device)
        part_N[int(start_G[g]) : int(start_G[g]) + n] = place * int(_split_into(size_G[g])) // n


def _centres(grid: _Grid, row_N: Tensor, order_N: Tensor, batch: Tensor, K: int, S: int) -> tuple[Tensor, Tensor]:
    """Centres [G, K, D] of each group of a batch after `ITERATIONS` of Lloyd, and |c|^2 [G, K, 1], infinite if none.

    batch: start, size, clusters and sample of each group [4, G]. K, S: the most clusters and the largest sample.
    """
    device, (start_G, size_G, k_G, taken_G) = batch.device, batch
    slot_S, taken_G1, size_G1 = torch.arange(S, device=device), taken_G[:, None], size_G[:, None]
    # The (i+1) n / s - 1-th of n events, i < s: evenly spread, and the newest is always among them.
    spread_GS = torch.minimum((slot_S + 1) * size_G1 // taken_G1, size_G1) - 1
    mask_GS = slot_S < taken_G1
    row_GS = row_N[order_N[start_G[:, None] + spread_GS]]
    x_GSD, norm_GS = grid.rows(row_GS), grid.norm_U[row_GS]
    x_GDS, norm_G1S = x_GSD.transpose(1, 2), norm_GS[:, None]
    rows_G = torch.arange(batch.shape[1], device=device)
    centre_KGD = torch.empty(K, len(rows_G), grid.width, device=device)
    missing_GK1 = (torch.arange(K, device=device) >= k_G[:, None])[..., None]
    nearest_GS = torch.where(mask_GS, torch.inf, -1.0)  # slots behind a group: never the farthest
    chosen_G = taken_G - 1
    for k in range(K):
        centre_KGD[k] = x_GSD[rows_G, chosen_G]
        # Centre by events, here and below: MKL is three to ten times slower the other way round.
        far_GS = torch.baddbmm(norm_G1S, centre_KGD[k][:, None], x_GDS, alpha=-2)[:, 0]
        nearest_GS = torch.minimum(nearest_GS, far_GS.add_(norm_GS[rows_G, chosen_G][:, None]))
        chosen_G = nearest_GS.argmax(1)
    centre_GKD = centre_KGD.transpose(0, 1).contiguous()
    for _ in range(ITERATIONS):
        norm_GK1 = torch.square(centre_GKD).sum(2, keepdim=True).masked_fill_(missing_GK1, torch.inf)
        found_GS = torch.baddbmm(norm_GK1, -2 * centre_GKD, x_GDS).min(1).indices
        member_GSK = torch.zeros(*found_GS.shape, K, device=device).scatter_(2, found_GS[..., None], 1.0)
        member_GSK *= mask_GS[..., None]
        count_GK1 = member_GSK.sum(1)[..., None]
        sum_GKD = torch.bmm(member_GSK.transpose(1, 2), x_GSD)
        # A centre that lost all its events stays where it was.
        centre_GKD = torch.where(count_GK1 > 0, torch.trunc(sum_GKD / count_GK1.clamp(min=1)), centre_GKD)
    return centre_GKD, torch.square(centre_GKD).sum(2, keepdim=True).masked_fill_(missing_GK1, torch.inf)


def _split_into(size_G: np.ndarray) -> np.ndarray:
    """Clusters that groups of so many events split into."""
    return np.maximum(2, np.floor(np.cbrt(size_G) + 1e-9).astype(np.int64))


def _sample(size_G: np.ndarray) -> np.ndarray:
    """Events that groups of so many events learn their centres from."""
    return np.minimum(size_G, SAMPLE * _split_into(size_G))


def _batches(size_G: np.ndarray, wanted: np.ndarray, cells_G: np.ndarray, device: str) -> Iterator[np.ndarray]:
    """The wanted groups in batches of similar size (see `WASTE`), at most `CELLS` of them, smallest first."""
    ordered = wanted[np.argsort(size_G[wanted], kind="stable")]
    sizes, low = size_G[ordered], 0
    while low < len(ordered):
        high = int(np.searchsorted(sizes, max(sizes[low] * WASTE[device], sizes[low] + 1), side="right"))
        high = low + max(1, min(high - low, CELLS[device] // int(cells_G[ordered[high - 1]])))
        yield ordered[low:high]
        low = high


def _slots(start_G: Tensor, size_G: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The places [G, S] of the events `low` to `high` of each group, and which of them exist."""
    slot_S, size_G1 = torch.arange(low, high, device=size_G.device), size_G[:, None]
    return start_G[:, None] + torch.minimum(slot_S, size_G1 - 1), slot_S < size_G1


def _runs(user_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each run of equal users."""
    start_G = np.flatnonzero(np.concatenate([[True], user_N[1:] != user_N[:-1]]))
    return start_G, np.diff(np.append(start_G, len(user_N)))


class _Grid:
    """The vectors of some items U in whole 1/2048 [U, D] (int16), their squared lengths [U] (float32), and room."""

    def __init__(self, vector_ID: Tensor, item_U: Tensor) -> None:
        """Raises ValueError for a vector longer than 1, whose sums float32 might not hold exactly."""
        items, self.width = len(item_U), vector_ID.shape[1]
        self.device = vector_ID.device.type
        self._value_UD = torch.empty(items, self.width, dtype=torch.int16, device=vector_ID.device)
        self.norm_U = torch.empty(items, device=vector_ID.device)
        # Room that is used again and again: fresh pages from the system cost more than the arithmetic.
        self._whole, self._real = self._value_UD.new_empty(0), self.norm_U.new_empty(0)
        step = min(items, max(1, CELLS[self.device] // (4 * max(1, self.width))))
        x_SD, square_SD = self.norm_U.new_empty(2, step, self.width)
        length_U = torch.empty_like(self.norm_U)
        for low in range(0, items, step):
            high = min(items, low + step)
            x, square = x_SD[: high - low], square_SD[: high - low]
            torch.index_select(vector_ID, 0, item_U[low:high], out=x)
            torch.linalg.vector_norm(x, dim=1, out=length_U[low:high])
            self._value_UD[low:high] = x.mul_(GRID)  # cut towards zero
            x.copy_(self._value_UD[low:high])
            torch.sum(torch.mul(x, x, out=square), 1, out=self.norm_U[low:high])
        if not (longest := float(length_U.max())) <= 1 + 1e-5:
            raise ValueError(f"a content vector has length {longest:.4f}; divide each by its length")

    def rows(self, row_GS: Tensor) -> Tensor:
        """The vectors of these rows, float32 [G, S, D]; the next call writes over them."""
        count = row_GS.numel()
        if len(self._whole) < count:
            self._whole = self._value_UD.new_empty(count, self.width)
            self._real = self.norm_U.new_empty(count, self.width)
        whole, real = self._whole[:count], self._real[:count]
        torch.index_select(self._value_UD, 0, row_GS.flatten(), out=whole)
        return real.copy_(whole).view(*row_GS.shape, self.width)
