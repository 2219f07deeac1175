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
    used: dict[tuple[int, ...], set[int]] = {}
    for row in given.tolist():
        used.setdefault(tuple(row[:-1]), set()).add(row[-1])
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(codes_NL[:, :-1].tolist()):
        groups.setdefault(tuple(row), []).append(i)
    out = codes_NL.copy()
    homeless: list[int] = []
    for prefix, members in groups.items():
        occupied = used.setdefault(prefix, set())
        wanted = codes_NL[members, -1]
        if len(np.unique(wanted)) == len(members) and not occupied.intersection(wanted.tolist()):
            occupied.update(wanted.tolist())
            continue
        free = np.array(sorted(set(range(K)) - occupied), dtype=np.int64)
        if len(free):
            cost = _distances(vectors_ND[members] - _prefix_vector(prefix, codebooks), codebooks[-1][free])
            rows, cols = linear_sum_assignment(cost)
            out[np.array(members)[rows], -1] = free[cols]
            occupied.update(free[cols].tolist())
            homeless += [members[r] for r in set(range(len(members))) - set(rows.tolist())]
        else:
            homeless += members
    for i in homeless:
        prefix = _nearest_prefix_with_room(vectors_ND[i], codebooks, used)
        free = np.array(sorted(set(range(K)) - used.setdefault(prefix, set())), dtype=np.int64)
        residual = vectors_ND[i] - _prefix_vector(prefix, codebooks)
        last = int(free[_distances(residual[None], codebooks[-1][free])[0].argmin()])
        used[prefix].add(last)
        out[i] = [*prefix, last]
    return out


def _prefix_vector(prefix: tuple[int, ...], codebooks: list[np.ndarray]) -> np.ndarray:
    return np.sum([codebooks[level][code] for level, code in enumerate(prefix)], axis=0)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a[:, None].astype(np.float64) - b[None]).sum(-1)


def _nearest_prefix_with_room(
    vector: np.ndarray, codebooks: list[np.ndarray], used: dict[tuple[int, ...], set[int]]
) -> tuple[int, ...]:
    """Prefixes in order of distance (greedy over the first level, then the next) until one has a free last code."""
    K = len(codebooks[-1])

    def search(prefix: tuple[int, ...], residual: np.ndarray) -> tuple[int, ...] | None:
        level = len(prefix)
        if level == len(codebooks) - 1:
            return prefix if len(used.get(prefix, ())) < K else None
        for code in np.argsort(_distances(residual[None], codebooks[level])[0], kind="stable").tolist():
            if found := search((*prefix, code), residual - codebooks[level][code]):
                return found
        return None

    found = search((), vector)
    assert found is not None  # the caller has checked that the code space has room
    return found
