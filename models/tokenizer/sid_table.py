"""The SID table of a release: its code columns, and the digest by which models and carries name it."""

from __future__ import annotations

import hashlib

import numpy as np

LEVEL_COLUMNS = ("c0", "c1", "c2")


def sid_digest(sid_NL: np.ndarray) -> str:
    """sha256 of the rows of a SID table, as int64, in hex."""
    return hashlib.sha256(np.ascontiguousarray(sid_NL, dtype=np.int64).tobytes()).hexdigest()
