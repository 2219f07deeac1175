"""The lifelong pathway: each user's whole history compressed by hierarchical K-means (TR section 2.2.3, after TWIN-V2).

    group, representative = compress(user, vectors)

A group splits into floor(cbrt(n)) clusters, at least 2, until it holds at most `GROUP_SIZE` events. A final group is
represented by the event nearest to its centre. All users are clustered at one time, level by level, so the cost is a
few matrix passes whatever the number of users. Deterministic: K-means starts from the newest event and those farthest
from it, without randomness.

Legend: N events of all users, D content dimensions, G groups.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

GROUP_SIZE = 3  # M of the report, which does not publish it: docs/decisions.md
ITERATIONS = 4
MAX_LEVELS = 12
CONTENT_DIM = 16
_WORD = re.compile(r"\w+", re.UNICODE)


def content_vectors(
    tags: Sequence[Sequence[int] | None],
    authors: Sequence[int | None],
    texts: Sequence[str | None],
    embeddings: Sequence[Sequence[float] | None],
) -> np.ndarray:
    """Unit vectors [N, D] of items for clustering: the source's own embedding where there is one, else hashed features.

    A source's embedding of another width is folded into D columns by a fixed signed hash of the column number.
    """
    out = np.zeros((len(tags), CONTENT_DIM), np.float32)
    for i, (item_tags, author, text, embedding) in enumerate(zip(tags, authors, texts, embeddings, strict=True)):
        if embedding is not None and len(embedding):
            features = [(f"dim{j}", float(x)) for j, x in enumerate(embedding)]
        else:
            features = [(f"tag{t}", 2.0) for t in item_tags or ()]
            features += [(f"word{w}", 1.0) for w in _WORD.findall((text or "").lower())]
            features += [(f"author{author}", 1.0)] if author is not None and author >= 0 else []
        for name, value in features:
            code = zlib.crc32(name.encode())
            out[i, code % CONTENT_DIM] += value if code & 0x10000 else -value
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def compress(user_N: np.ndarray, vector_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group events of the same user by content: the group of each event [N], the representative of each group [G].

    user_N must be sorted; groups are numbered in order of user. Identical vectors that cannot be told apart are cut
    by their place in the history, so every group ends with at most GROUP_SIZE events.
    """
    if not len(user_N):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, group_N = np.unique(user_N, return_inverse=True)
    for _ in range(MAX_LEVELS):
        size_G = np.bincount(group_N)
        big_N = size_G[group_N] > GROUP_SIZE
        if not big_N.any():
            break
        part_N = np.zeros(len(group_N), np.int64)
        part_N[big_N] = _split(group_N[big_N], vector_ND[big_N])
        _, group_N = np.unique(group_N * (part_N.max() + 1) + part_N, return_inverse=True)
    return group_N, _representatives(group_N, vector_ND)


def _split(group_N: np.ndarray, vector_ND: np.ndarray) -> np.ndarray:
    """One K-means of every group side by side: the cluster of each event within its group."""
    order = np.argsort(group_N, kind="stable")
    x_ND = vector_ND[order]
    _, start_G, g_N, size_G = np.unique(group_N[order], return_index=True, return_inverse=True, return_counts=True)
    k_G = np.maximum(2, np.floor(np.cbrt(size_G) + 1e-9).astype(np.int64))
    first_G = np.cumsum(k_G) - k_G
    centre_CD = _farthest_first(x_ND, g_N, start_G, size_G, k_G, first_G)
    cluster_N = np.zeros(len(g_N), np.int64)
    for _ in range(ITERATIONS):
        found_N = _nearest(x_ND, g_N, k_G, first_G, centre_CD)
        if np.array_equal(found_N, cluster_N):
            break
        cluster_N = found_N
        centre_CD = _means(first_G[g_N] + cluster_N, x_ND, len(centre_CD))
    # A group that K-means left whole (equal vectors) is cut by time, or it would never end.
    low, high = (f.reduceat(cluster_N, start_G) for f in (np.minimum, np.maximum))
    by_time_N = (np.arange(len(g_N)) - start_G[g_N]) * k_G[g_N] // size_G[g_N]
    out = np.empty_like(cluster_N)
    out[order] = np.where((low == high)[g_N], by_time_N, cluster_N)
    return out


def _farthest_first(
    x_ND: np.ndarray, g_N: np.ndarray, start_G: np.ndarray, size_G: np.ndarray, k_G: np.ndarray, first_G: np.ndarray
) -> np.ndarray:
    """Starting centres [C, D]: a group's newest event, then again and again the event farthest from those chosen."""
    centre_CD = np.zeros((int(k_G.sum()), x_ND.shape[1]), np.float32)
    chosen_G = start_G + size_G - 1
    nearest_N = np.full(len(g_N), np.inf, np.float32)
    for j in range(int(k_G.max())):
        wanted_G = k_G > j
        centre_CD[first_G[wanted_G] + j] = x_ND[chosen_G[wanted_G]]
        difference = x_ND - x_ND[chosen_G[g_N]]
        nearest_N = np.minimum(nearest_N, np.einsum("nd,nd->n", difference, difference))
        rows = np.flatnonzero(nearest_N == np.maximum.reduceat(nearest_N, start_G)[g_N])
        chosen_G = rows[np.unique(g_N[rows], return_index=True)[1]]
    return centre_CD


def _nearest(
    x_ND: np.ndarray, g_N: np.ndarray, k_G: np.ndarray, first_G: np.ndarray, centre_CD: np.ndarray
) -> np.ndarray:
    """The nearest of its group's centres for each event; of equals the first."""
    k_N, first_N = k_G[g_N], first_G[g_N]
    best_N = np.full(len(g_N), np.inf, np.float32)
    found_N = np.zeros(len(g_N), np.int64)
    for j in range(int(k_G.max())):
        rows = np.flatnonzero(k_N > j)
        centre_ND = centre_CD[first_N[rows] + j]
        # |x - c|^2 without the |x|^2 that all candidates share
        distance = np.einsum("nd,nd->n", centre_ND - 2 * x_ND[rows], centre_ND)
        closer = distance < best_N[rows] - 1e-6
        best_N[rows[closer]], found_N[rows[closer]] = distance[closer], j
    return found_N


def _representatives(group_N: np.ndarray, vector_ND: np.ndarray) -> np.ndarray:
    """The event nearest to the centre of each group; of equals the latest."""
    centre_GD = _means(group_N, vector_ND, int(group_N.max()) + 1)
    distance_N = np.square(vector_ND - centre_GD[group_N]).sum(1).round(5)
    order = np.lexsort((-np.arange(len(group_N)), distance_N, group_N))
    return order[np.unique(group_N[order], return_index=True)[1]]


def _means(cluster_N: np.ndarray, vector_ND: np.ndarray, count: int) -> np.ndarray:
    member_CN = sp.csc_matrix(
        (np.ones(len(cluster_N), np.float32), cluster_N, np.arange(len(cluster_N) + 1)), shape=(count, len(cluster_N))
    )
    return (member_CN @ vector_ND) / np.maximum(np.bincount(cluster_N, minlength=count), 1)[:, None].astype(np.float32)
