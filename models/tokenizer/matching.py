"""After a refit: codes keep their meaning. New centroids take the number of the old centroid that they continue.

    rotation_DE = align(old_ND, new_NE)                       # the old space, seen in the new one
    books, source = keep_labels(new_books, [b @ rotation_DE for b in old_books])
    carry_code_embeddings(state, source)                      # carry.py: the model goes on from there

A refit may turn the space (a new SVD, a newly trained encoder), so the old centroids are first turned with the items
that both know (orthogonal Procrustes: Schoenemann 1966). Then each level is an assignment problem on squared distances
of centroids. Levels are matched one by one: residuals of a later level live in the same space, whatever was above.

Legend: N items that both fits know, D old and E new dimensions, K old and J >= K new codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment


def align(old_ND: np.ndarray, new_NE: np.ndarray) -> np.ndarray:
    """The (semi-)orthogonal map [D, E] that brings the old vectors nearest to the new ones of the same items.

    Means are left alone: content and collaborative halves have fixed norms, and a shift would be no rotation.
    """
    u, _, vt = np.linalg.svd(old_ND.astype(np.float64).T @ new_NE.astype(np.float64), full_matrices=False)
    return (u @ vt).astype(new_NE.dtype)


def match(new_JE: np.ndarray, old_KE: np.ndarray) -> np.ndarray:
    """Old code of each new one [J] at the least total squared distance; -1 for the J - K that have none.

    Raises ValueError when there are fewer new codes than old ones: items would lose the names they have.
    """
    if len(new_JE) < len(old_KE):
        raise ValueError(
            f"a refit to {len(new_JE)} codes from {len(old_KE)} loses names; keep the codebook or enlarge it"
        )
    new, old = new_JE.astype(np.float64), old_KE.astype(np.float64)
    cost = np.square(new).sum(1)[:, None] + np.square(old).sum(1) - 2 * new @ old.T
    rows, cols = linear_sum_assignment(cost)
    out = np.full(len(new), -1, np.int64)
    out[rows] = cols
    return out


def keep_labels(
    new_books: Sequence[np.ndarray], old_books: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """New codebooks in the order of the old ones, surplus codes behind, and for each new code the old code whose
    embedding it starts from [J]: its own, or for a surplus code the nearest."""
    books, sources = [], []
    for new_JE, old_KE in zip(new_books, old_books, strict=True):
        of = match(new_JE, old_KE)
        order = np.argsort(np.where(of < 0, len(new_JE), of), kind="stable")
        book, source = new_JE[order], of[order]
        surplus = source < 0
        if surplus.any():
            distance = np.square(old_KE).sum(1) - 2 * book[surplus] @ old_KE.T
            source[surplus] = distance.argmin(1)
        books.append(book)
        sources.append(source)
    return books, sources
