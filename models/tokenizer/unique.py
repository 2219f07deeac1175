"""One legal ID an item: items that share a code tuple are spread over the last level at the least extra distance.

Within one prefix the items and the free last codes form an assignment problem. It is solved exactly (Hungarian method)
for the prefixes that need it, over each item's m nearest free codes, m being the items of the prefix: no optimum needs
others. Above EXACT items a prefix is filled greedily, nearest first. A prefix with more items than free codes sends its
worst-placed items to the nearest prefix with room, so every item gets an ID while the code space has any left. IDs
already given never move.

Cost for N items of which C share a prefix with a collision: sorts of N integers, C x K distances, and one small
assignment a prefix. Measured with the alternative, the most popular item keeps the code: docs/decisions/tokenizer.md.

Legend: N items, L levels, K codes, D dimensions, G items of one prefix, F free codes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

EXACT = 512  # items of a prefix up to which the assignment is exact
DISTANCES = 1 << 24  # distances that exist at one time


def pack(codes_NL: np.ndarray, codebook_size: int) -> np.ndarray:
    """Code tuples as integers in lexicographic order [N] int64."""
    key = codes_NL[..., 0].astype(np.int64)
    for level in range(1, codes_NL.shape[-1]):
        key *= codebook_size
        key += codes_NL[..., level]
    return key


def unique_codes(
    codes_NL: np.ndarray, vectors_ND: np.ndarray, codebooks: list[np.ndarray], taken: np.ndarray | None = None
) -> np.ndarray:
    """Code tuples [N, L] with no duplicates, also none with `taken` [M, L] (IDs of earlier items).

    codes_NL: the nearest codes. vectors_ND: the representations they came from.
    Raises ValueError when there are more items than code tuples.
    """
    K, levels = len(codebooks[-1]), codes_NL.shape[1]
    given = np.empty((0, levels), np.int64) if taken is None else taken
    if len(codes_NL) + len(given) > K**levels:
        raise ValueError(
            f"{len(codes_NL) + len(given)} items do not fit into {K}^{levels} code tuples; enlarge the codebook"
        )
    out = codes_NL.copy()
    key, given_key = pack(codes_NL, K), np.sort(pack(given, K))
    prefix = key // K
    contested = np.isin(prefix, prefix[_shared(key) | _among(given_key, key)])
    space = _LastCodes(K, np.sort(np.concatenate([given_key, key[~contested]])))
    homeless: list[int] = []
    for members, distance_GK in _groups(np.flatnonzero(contested), prefix, codes_NL, vectors_ND, codebooks):
        free = space.free(int(prefix[members[0]]))
        rows, cols = _place(distance_GK[:, free])
        out[members[rows], -1] = free[cols]
        space.take(int(prefix[members[0]]), free[cols].tolist())
        homeless += np.delete(members, rows).tolist()
    for i in sorted(homeless):
        to = _nearest_prefix_with_room(vectors_ND[i], codebooks, space)
        at = int(pack(np.array(to), K)) if to else 0
        free = space.free(at)
        residual = vectors_ND[i] - _prefix_vectors(np.array([to], int), codebooks)[0]
        last = int(free[_distances(residual[None], codebooks[-1][free])[0].argmin()])
        space.take(at, [last])
        out[i] = [*to, last]
    return out


def _shared(key_N: np.ndarray) -> np.ndarray:
    """Which keys occur more than once."""
    order = np.argsort(key_N, kind="stable")
    same = np.zeros(len(key_N) + 1, bool)
    same[1:-1] = key_N[order[1:]] == key_N[order[:-1]]
    out = np.empty(len(key_N), bool)
    out[order] = same[1:] | same[:-1]
    return out


def _among(sorted_M: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    """Which keys are in a sorted array."""
    if not len(sorted_M):
        return np.zeros(len(key_N), bool)
    return sorted_M[np.minimum(np.searchsorted(sorted_M, key_N), len(sorted_M) - 1)] == key_N


def _groups(rows, prefix_N, codes_NL, vectors_ND, codebooks):
    """(members, their distances to all last codes [G, K]) of each prefix in turn; distances of many at a time."""
    rows = rows[np.argsort(prefix_N[rows], kind="stable")]
    ends = np.append(np.flatnonzero(np.diff(prefix_N[rows])) + 1, len(rows)) if len(rows) else np.empty(0, int)
    most, start, first = max(1, DISTANCES // len(codebooks[-1])), 0, 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, start + most, side="right")))
        block = rows[start : ends[last - 1]]
        residual = vectors_ND[block] - _prefix_vectors(codes_NL[block, :-1], codebooks)
        distance = _distances(residual, codebooks[-1])
        at = start
        for end in ends[first:last]:
            yield rows[at:end], distance[at - start : end - start]
            at = end
        start, first = int(ends[last - 1]), last


def _place(cost_GF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(items, free codes) of the cheapest assignment; items without a place are left out when G > F."""
    G, F = cost_GF.shape
    if G > EXACT:
        return _greedy(cost_GF)
    if G < F:
        columns = np.unique(np.argpartition(cost_GF, G - 1, axis=1)[:, :G])
        rows, cols = linear_sum_assignment(cost_GF[:, columns])
        return rows, columns[cols]
    return linear_sum_assignment(cost_GF)


def _greedy(cost_GF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items nearest to a free code choose first."""
    F = cost_GF.shape[1]
    open_F, rows = np.ones(F, bool), np.argsort(cost_GF.min(1), kind="stable")[:F] if F else np.empty(0, int)
    cols = np.empty(len(rows), int)
    for n, row in enumerate(rows):
        cols[n] = np.where(open_F, cost_GF[row], np.inf).argmin()
        open_F[cols[n]] = False
    return rows, cols


class _LastCodes:
    """Which last codes of a prefix (packed) are given and which are free; memory: 8 bytes an ID."""

    def __init__(self, codebook_size: int, given_key: np.ndarray) -> None:
        self.codebook_size, self._given = codebook_size, given_key
        self._more: dict[int, list[int]] = {}

    def free(self, prefix: int) -> np.ndarray:
        low, high = self._range(prefix)
        free = np.ones(self.codebook_size, bool)
        free[self._given[low:high] - prefix * self.codebook_size] = False
        free[self._more.get(prefix, [])] = False
        return np.flatnonzero(free)

    def has_room(self, prefix: int) -> bool:
        low, high = self._range(prefix)
        return high - low + len(self._more.get(prefix, ())) < self.codebook_size

    def take(self, prefix: int, codes: list[int]) -> None:
        self._more.setdefault(prefix, []).extend(codes)

    def _range(self, prefix: int) -> tuple[int, int]:
        low, high = np.searchsorted(self._given, [prefix * self.codebook_size, (prefix + 1) * self.codebook_size])
        return int(low), int(high)


def _prefix_vectors(prefix_NP: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((len(prefix_NP), codebooks[0].shape[1]), codebooks[0].dtype)
    for level in range(prefix_NP.shape[1]):
        out += codebooks[level][prefix_NP[:, level]]
    return out


def _distances(a_MD: np.ndarray, b_KD: np.ndarray) -> np.ndarray:
    """Squared distances [M, K] in float64, without an [M, K, D] array."""
    a, b = a_MD.astype(np.float64), b_KD.astype(np.float64)
    distance = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * (a @ b.T)
    return np.maximum(distance, 0)


def _nearest_prefix_with_room(vector: np.ndarray, codebooks: list[np.ndarray], space: _LastCodes) -> tuple[int, ...]:
    """Prefixes in order of distance (greedy over the first level, then the next) until one has a free last code."""
    K = space.codebook_size

    def search(prefix: tuple[int, ...], key: int, residual: np.ndarray) -> tuple[int, ...] | None:
        level = len(prefix)
        if level == len(codebooks) - 1:
            return prefix if space.has_room(key) else None
        for code in np.argsort(_distances(residual[None], codebooks[level])[0], kind="stable").tolist():
            if found := search((*prefix, code), key * K + code, residual - codebooks[level][code]):
                return found
        return None

    found = search((), 0, vector)
    assert found is not None  # the caller has checked that the code space has room
    return found
