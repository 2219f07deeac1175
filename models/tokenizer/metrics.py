"""How good a tokenizer is: reconstruction, utilisation and entropy a level, collisions, changed IDs, its code tree."""

from __future__ import annotations

from collections import Counter

import numpy as np


def level_metrics(codes_NL: np.ndarray, codebook_size: int) -> dict:
    """Share of codes used and Shannon entropy (natural logarithm, as TR Table 11) of each level."""
    utilization, entropy = [], []
    for level in range(codes_NL.shape[1]):
        count = np.bincount(codes_NL[:, level], minlength=codebook_size)
        p = count[count > 0] / count.sum()
        utilization.append(float((count > 0).mean()))
        entropy.append(float(-(p * np.log(p)).sum()))
    return {"utilization": utilization, "entropy": entropy, "max_entropy": float(np.log(codebook_size))}


def collision_rate(codes_NL: np.ndarray, taken_ML: np.ndarray | None = None) -> float:
    """Share of the items of `codes_NL` whose tuple another of them has, or an item of `taken_ML`. 0 of no items."""
    every = codes_NL if taken_ML is None else np.concatenate([codes_NL, taken_ML])
    _, inverse, count = np.unique(every, axis=0, return_inverse=True, return_counts=True)
    return float((count[inverse.ravel()[: len(codes_NL)]] > 1).mean()) if len(codes_NL) else 0.0


def reconstruction_loss(vectors_ND: np.ndarray, rebuilt_ND: np.ndarray, catalogue_MD: np.ndarray) -> float | None:
    """Mean squared error as a share of the catalogue's variance: 0 is perfect, 1 is no better than its mean.

    None without vectors. The variance is the catalogue's because a day may bring a single new item, which has none.
    """
    if not len(vectors_ND):
        return None
    variance = np.square(catalogue_MD - catalogue_MD.mean(0)).sum(1).mean()
    return float(np.square(vectors_ND - rebuilt_ND).sum(1).mean() / max(variance, 1e-12))


def changed_ids(before: dict[int, tuple[int, ...]], after: dict[int, tuple[int, ...]]) -> int:
    """Number of items that `before` has and `after` names otherwise or not at all."""
    return sum(after.get(item) != codes for item, codes in before.items())


def code_tree(codes_NL: np.ndarray, tags: list[list[int]], texts: list[str], branches: int = 8) -> list[dict]:
    """The largest first-level codes with their commonest tags and an example text: coarse topics if all is well."""
    tree = []
    for code, _ in Counter(codes_NL[:, 0].tolist()).most_common(branches):
        members = np.flatnonzero(codes_NL[:, 0] == code)
        top = Counter(t for i in members for t in tags[i]).most_common(3)
        example = next((texts[i] for i in members if texts[i]), "")
        tree.append(
            {
                "code": int(code),
                "items": len(members),
                "top_tags": [{"tag": int(t), "share": n / len(members)} for t, n in top],
                "example": example[:80],
                "second_level_codes": len(np.unique(codes_NL[members, 1])),
            }
        )
    return tree
