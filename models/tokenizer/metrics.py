"""How good a tokenizer is: reconstruction, utilisation and entropy a level, collisions, and a sample of its code tree."""

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


def collision_rate(codes_NL: np.ndarray) -> float:
    """Share of items that share their tuple with another item."""
    _, inverse, count = np.unique(codes_NL, axis=0, return_inverse=True, return_counts=True)
    return float((count[inverse.ravel()] > 1).mean()) if len(codes_NL) else 0.0


def reconstruction_loss(vectors_ND: np.ndarray, rebuilt_ND: np.ndarray) -> float:
    """Mean squared error as a share of the vectors' variance: 0 is perfect, 1 is no better than the mean."""
    variance = np.square(vectors_ND - vectors_ND.mean(0)).sum()
    return float(np.square(vectors_ND - rebuilt_ND).sum() / max(variance, 1e-12))


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
