"""How good a tokenizer is: reconstruction, utilisation and entropy a level, collisions, churn, neighbours, a code tree.

What a value must be for a tokenizer to be released: gates.py.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import scipy.sparse as sp

PAIRS, FEW_PAIRS = 20_000, 200  # sampled pairs; below so many different ones a share says nothing
BRANCHES = (8, 4, 4)  # of a node of each level, shown in the code tree


def level_metrics(codes_NL: np.ndarray, codebook_size: int) -> dict:
    """Share of codes used and Shannon entropy (natural logarithm, as TR Table 11) of each level.

    `reachable`: share of the codebook that so many items can use at all.
    """
    utilization, entropy = [], []
    for level in range(codes_NL.shape[1]):
        count = np.bincount(codes_NL[:, level], minlength=codebook_size)
        p = count[count > 0] / count.sum()
        utilization.append(float((count > 0).mean()))
        entropy.append(float(-(p * np.log(p)).sum()))
    reachable = min(1.0, len(codes_NL) / codebook_size)
    most = {"max_entropy": float(np.log(codebook_size)), "reachable": reachable}
    return {"utilization": utilization, "entropy": entropy, **most}


def collision_rate(codes_NL: np.ndarray, taken_ML: np.ndarray | None = None) -> float:
    """Share of the items of `codes_NL` whose tuple another of them has, or an item of `taken_ML`. 0 of no items."""
    every = codes_NL if taken_ML is None else np.concatenate([codes_NL, taken_ML])
    _, inverse, count = np.unique(every, axis=0, return_inverse=True, return_counts=True)
    return float((count[inverse.ravel()[: len(codes_NL)]] > 1).mean()) if len(codes_NL) else 0.0


def reconstruction_loss(vectors_ND: np.ndarray, rebuilt_ND: np.ndarray, variance: float) -> float | None:
    """Mean squared error as a share of `variance`, the catalogue's at the fit: 0 is perfect, 1 no better than its mean.

    None without vectors. Not the variance of the vectors, because a day may bring a single new item, which has none.
    """
    if not len(vectors_ND):
        return None
    return float(np.square(vectors_ND - rebuilt_ND).sum(1).mean() / max(variance, 1e-12))


def changed_ids(ids_M: np.ndarray, codes_ML: np.ndarray, now_ids_N: np.ndarray, now_codes_NL: np.ndarray) -> int:
    """Number of the items `ids_M` that are now named otherwise, or not at all."""
    if not len(ids_M) or not len(now_ids_N):
        return len(ids_M)
    order = np.argsort(now_ids_N, kind="stable")
    at = order[np.minimum(np.searchsorted(now_ids_N[order], ids_M), len(order) - 1)]
    same = (now_ids_N[at] == ids_M) & (now_codes_NL[at] == codes_ML).all(1)
    return int((~same).sum())


def churn(before_NL: np.ndarray, after_NL: np.ndarray) -> list[float]:
    """Share of the items whose first code, first two codes, ... whole ID differ."""
    differs = np.logical_or.accumulate(before_NL != after_NL, axis=1)
    return [float(v) for v in differs.mean(0)] if len(differs) else [0.0] * before_NL.shape[1]


def neighbour_quality(
    codes_NL: np.ndarray, tags: list[list[int]], users: np.ndarray, liked: np.ndarray, seed: int
) -> dict[str, dict[str, float | None]]:
    """Do items that share a prefix share a tag, and a viewer? Share of PAIRS sampled pairs, beside random pairs.

    users, liked: (user, row of codes_NL) of positive impressions. Only pairs of which both have tags (viewers) count;
    None where fewer than FEW_PAIRS are left. `lift`: pairs that share the first code against random pairs.
    """
    users = np.unique(users, return_inverse=True)[1]
    signals = {
        "tags": _table(
            np.repeat(np.arange(len(tags)), [len(t) for t in tags]), [t for row in tags for t in row], len(tags)
        ),
        "viewers": _table(liked, users, len(tags)),
    }
    rng, out = np.random.default_rng(seed), {}
    for name, table in signals.items():
        rows = np.flatnonzero(np.diff(table.indptr))
        quality = {f"prefix_{depth}": _alike(table, *_pairs(codes_NL[rows, :depth], rng), rows) for depth in (1, 2)}
        quality["random"] = _alike(table, *_pairs(codes_NL[rows, :0], rng), rows)
        near, random = quality["prefix_1"], quality["random"]
        quality["lift"] = near / random if near is not None and random else None
        out[name] = quality
    return out


def _table(rows: np.ndarray, values: list[int] | np.ndarray, items: int) -> sp.csr_matrix:
    codes = np.unique(np.asarray(values, np.int64), return_inverse=True)[1]
    shape = (items, int(codes.max()) + 1 if len(codes) else 1)
    table = sp.csr_matrix((np.ones(len(codes), np.float32), (rows, codes)), shape=shape)
    table.sum_duplicates()
    return table


def _pairs(prefix_NP: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two different items that share the prefix; every item that has company is as likely to be first."""
    group = np.zeros(len(prefix_NP), np.int64)
    if prefix_NP.shape[1]:
        group = np.unique(prefix_NP, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    start = np.cumsum(size) - size
    first = np.flatnonzero(size[group] > 1) if len(group) else group
    if not len(first):
        return first, first
    first = rng.choice(first, PAIRS)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - start[group[order]]
    other = (place[first] + rng.integers(1, size[group[first]])) % size[group[first]]
    return first, order[start[group[first]] + other]


def _alike(table: sp.csr_matrix, first: np.ndarray, second: np.ndarray, rows: np.ndarray) -> float | None:
    """Share of the pairs with anything in common. Pairs of a few items are many times the same: they count once."""
    if not len(first):
        return None
    pairs = np.unique(np.sort(np.stack([rows[first], rows[second]], 1), axis=1), axis=0)
    if len(pairs) < FEW_PAIRS:
        return None
    common = np.asarray(table[pairs[:, 0]].multiply(table[pairs[:, 1]]).sum(1)).ravel()
    return float((common > 0).mean())


def code_tree(codes_NL: np.ndarray, tags: list[list[int]], texts: list[str]) -> list[dict]:
    """The largest first codes, in each its largest second codes, in those some items: coarse to fine if all is well.

    A branch holds its code, its number of items, its commonest tags, an example text, how many codes follow, and some
    of them as `children` (TR appendix C shows such trees).
    """
    return _branches(codes_NL, np.arange(len(codes_NL)), 0, tags, texts)


def _branches(
    codes_NL: np.ndarray, rows: np.ndarray, level: int, tags: list[list[int]], texts: list[str]
) -> list[dict]:
    branches = []
    for code, _ in Counter(codes_NL[rows, level].tolist()).most_common(BRANCHES[level]):
        members = rows[codes_NL[rows, level] == code]
        top = Counter(t for i in members for t in tags[i]).most_common(3)
        branch = {
            "code": int(code),
            "items": len(members),
            "top_tags": [{"tag": int(t), "share": n / len(members)} for t, n in top],
            "example": next((texts[i] for i in members if texts[i]), "")[:80],
        }
        if level + 1 < codes_NL.shape[1]:
            branch["next_codes"] = len(np.unique(codes_NL[members, level + 1]))
            branch["children"] = _branches(codes_NL, members, level + 1, tags, texts)
        branches.append(branch)
    return branches
