"""Collaborative signal of items: positive pointwise mutual information of items that share a user.

ppmi(users, items, num_items)     # one entry a positive interaction; a sparse [N, N] matrix for a truncated SVD
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def ppmi(users: np.ndarray, items: np.ndarray, num_items: int) -> sp.csr_matrix:
    """Positive pointwise mutual information of items that share a user [N, N]. One vote a (user, item) pair.

    Users are weighted 1/(number of items), so that a heavy user does not decide.
    """
    pairs = np.unique(np.stack([users, items], 1), axis=0)
    users, items = np.unique(pairs[:, 0], return_inverse=True)[1], pairs[:, 1]
    x = sp.csr_matrix((np.ones(len(items)), (users, items)), shape=(users.max() + 1 if len(users) else 0, num_items))
    degree = np.maximum(np.asarray(x.sum(1)).ravel(), 1.0)
    co = (x.T @ sp.diags(1.0 / degree) @ x).tocoo()
    keep = co.row != co.col
    row, col, value = co.row[keep], co.col[keep], co.data[keep]
    marginal = np.bincount(row, value, num_items)
    information = np.log(value * marginal.sum() / (marginal[row] * marginal[col]))
    positive = information > 0
    return sp.csr_matrix((information[positive], (row[positive], col[positive])), shape=(num_items, num_items))
