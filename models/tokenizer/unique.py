"""One legal ID an item: items that share a code tuple are spread over the last level at the least extra distance.

Within one prefix the items and the free last codes form an assignment problem; it is solved exactly (Hungarian method)
for the prefixes that need it. A prefix with more items than free codes sends its worst-placed items to the nearest
prefix with room, so every item gets an ID while the code space has any left. IDs already given never move.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


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
    space = _LastCodes(K, given)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(codes_NL[:, :-1].tolist()):
        groups.setdefault(tuple(row), []).append(i)
    out = codes_NL.copy()
    homeless: list[int] = []
    for prefix, members in groups.items():
        wanted = codes_NL[members, -1]
        if len(np.unique(wanted)) == len(members) and not space.used(prefix).intersection(wanted.tolist()):
            space.take(prefix, wanted.tolist())
            continue
        free = space.free(prefix)
        cost = _distances(vectors_ND[members] - _prefix_vector(prefix, codebooks), codebooks[-1][free])
        rows, cols = linear_sum_assignment(cost)
        out[np.array(members)[rows], -1] = free[cols]
        space.take(prefix, free[cols].tolist())
        homeless += np.delete(members, rows).tolist()
    for i in homeless:
        prefix = _nearest_prefix_with_room(vectors_ND[i], codebooks, space)
        free = space.free(prefix)
        residual = vectors_ND[i] - _prefix_vector(prefix, codebooks)
        last = int(free[_distances(residual[None], codebooks[-1][free])[0].argmin()])
        space.take(prefix, [last])
        out[i] = [*prefix, last]
    return out


class _LastCodes:
    """Which last codes of a prefix are given, and which are free (sorted; kept for the prefixes that were asked)."""

    def __init__(self, codebook_size: int, given_ML: np.ndarray) -> None:
        self.codebook_size = codebook_size
        self._used: dict[tuple[int, ...], set[int]] = {}
        self._free: dict[tuple[int, ...], np.ndarray] = {}
        for row in given_ML.tolist():
            self.used(tuple(row[:-1])).add(row[-1])

    def used(self, prefix: tuple[int, ...]) -> set[int]:
        return self._used.setdefault(prefix, set())

    def free(self, prefix: tuple[int, ...]) -> np.ndarray:
        if prefix not in self._free:
            self._free[prefix] = np.delete(np.arange(self.codebook_size), sorted(self.used(prefix)))
        return self._free[prefix]

    def has_room(self, prefix: tuple[int, ...]) -> bool:
        return len(self._used.get(prefix, ())) < self.codebook_size

    def take(self, prefix: tuple[int, ...], codes: list[int]) -> None:
        self.used(prefix).update(codes)
        if (free := self._free.get(prefix)) is not None:
            self._free[prefix] = np.delete(free, np.searchsorted(free, codes))


def _prefix_vector(prefix: tuple[int, ...], codebooks: list[np.ndarray]) -> np.ndarray:
    return np.sum([codebooks[level][code] for level, code in enumerate(prefix)], axis=0)


def _distances(a_MD: np.ndarray, b_KD: np.ndarray) -> np.ndarray:
    """Squared distances [M, K] in float64, without an [M, K, D] array."""
    a, b = a_MD.astype(np.float64), b_KD.astype(np.float64)
    distance = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * (a @ b.T)
    return np.maximum(distance, 0)


def _nearest_prefix_with_room(vector: np.ndarray, codebooks: list[np.ndarray], space: _LastCodes) -> tuple[int, ...]:
    """Prefixes in order of distance (greedy over the first level, then the next) until one has a free last code."""

    def search(prefix: tuple[int, ...], residual: np.ndarray) -> tuple[int, ...] | None:
        level = len(prefix)
        if level == len(codebooks) - 1:
            return prefix if space.has_room(prefix) else None
        for code in np.argsort(_distances(residual[None], codebooks[level])[0], kind="stable").tolist():
            if found := search((*prefix, code), residual - codebooks[level][code]):
                return found
        return None

    found = search((), vector)
    assert found is not None  # the caller has checked that the code space has room
    return found
