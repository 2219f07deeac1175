"""A small set with a planted pattern: item i is followed by i + 1 or, a little less often, by i + 3 (around a ring)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.data import Sequences

ITEMS, USERS = 48, 240


@pytest.fixture(scope="session")
def planted() -> Sequences:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(USERS):
        step = rng.choice([1, 3], size=int(rng.integers(5, 9)), p=[0.7, 0.3])
        rows.append((int(rng.integers(ITEMS)) + np.cumsum(step)) % ITEMS)
    return Sequences(items=np.concatenate(rows), offsets=np.cumsum([0] + [len(r) for r in rows]), num_items=ITEMS)


@pytest.fixture(scope="session")
def ring_vectors() -> np.ndarray:
    """Content vectors [ITEMS, 8] that say nothing but which item it is, of unit length."""
    x = np.random.default_rng(1).normal(size=(ITEMS, 8)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def amazon() -> Path:
    """The public sets, where they are present: $AMAZON14 names their folder."""
    import os

    folder = Path(os.environ.get("AMAZON14", "/nonexistent"))
    if not (folder / "beauty" / "sequences.txt").exists():
        pytest.skip("AMAZON14 does not name a folder with beauty/sequences.txt")
    return folder


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """A benchmark that runs in the test's process may take more threads; whoever comes after compares bits."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
