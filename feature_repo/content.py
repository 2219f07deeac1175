"""Content vectors of items: what the lifelong pathway clusters by.

    vector_ID = content_vectors(tags, authors, texts, embeddings)

Legend: I items, D content dimensions.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

CONTENT_DIM = 16
_WORD = re.compile(r"\w+", re.UNICODE)


def content_vectors(
    tags: Sequence[Sequence[int] | None],
    authors: Sequence[int | None],
    texts: Sequence[str | None],
    embeddings: Sequence[Sequence[float] | None],
) -> np.ndarray:
    """Unit vectors [I, D] of items for clustering: the source's own embedding where there is one, else hashed features.

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
