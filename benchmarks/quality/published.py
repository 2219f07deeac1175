"""Numbers of other papers and repositories on the same sets and protocol; none of them was run here.

A row: name, source, then Recall@5, NDCG@5, Recall@10, NDCG@10 of each set, None where not published.
"""

from __future__ import annotations

Numbers = tuple[float | None, float | None, float | None, float | None]
ORDER = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")

PUBLISHED: list[tuple[str, str, dict[str, Numbers]]] = [
    (
        "SASRec, as first compared",
        "TIGER, table 1",
        {"beauty": (0.0387, 0.0249, 0.0605, 0.0318), "sports": (0.0233, 0.0154, 0.0350, 0.0192)},
    ),
    (
        "S3-Rec",
        "TIGER, table 1",
        {"beauty": (0.0387, 0.0244, 0.0647, 0.0327), "sports": (0.0251, 0.0161, 0.0385, 0.0204)},
    ),
    (
        "TIGER",
        "arXiv 2305.05065",
        {"beauty": (0.0454, 0.0321, 0.0648, 0.0384), "sports": (0.0264, 0.0181, 0.0400, 0.0225)},
    ),
    (
        "GRID, RK-Means 3 x 256",
        "arXiv 2507.22224",
        {"beauty": (0.0422, 0.0277, 0.0639, 0.0347), "sports": (0.0236, 0.0153, 0.0353, 0.0191)},
    ),
    (
        "HSTU",
        "transformer_benchmark, its own runs",
        {"beauty": (None, None, 0.0788, 0.0439), "sports": (None, None, 0.0437, 0.0243)},
    ),
    (
        "ActionPiece",
        "ICML 2025",
        {"beauty": (0.0511, 0.0340, 0.0775, 0.0424), "sports": (0.0316, 0.0205, 0.0500, 0.0264)},
    ),
    (
        "OneRec-Think (Qwen3-1.7B)",
        "its paper",
        {"beauty": (0.0563, 0.0398, 0.0791, 0.0471), "sports": (0.0288, 0.0199, 0.0412, 0.0239)},
    ),
    ("GRLM", "its repository", {"beauty": (0.0607, None, None, None)}),
    ("GRLM with its CF task", "its repository", {"beauty": (0.0664, None, None, None)}),
    (
        "OpenOneRec-Foundation",
        "its repository",
        {"beauty": (None, None, 0.0924, None), "sports": (None, None, 0.0547, None)},
    ),
    (
        "SASRec, sampled softmax",
        "transformer_benchmark",
        {"beauty": (None, None, 0.0921, 0.0531), "sports": (None, None, 0.0569, 0.0314)},
    ),
    (
        "eSASRec",
        "transformer_benchmark",
        {"beauty": (None, None, 0.0928, 0.0523), "sports": (None, None, 0.0560, 0.0323)},
    ),
]
