"""K-means with bounds is K-means without: the same bits, for fewer distances."""

from __future__ import annotations

import pytest
import torch

from models.tokenizer import kmeans as clustering
from models.tokenizer.bounds import Bounds
from models.tokenizer.vectors import InMemory

ALWAYS, NEVER = 1, 10**9


def _topics(n: int, dim: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(40, dim, generator=g)
    return centre[torch.randint(40, (n,), generator=g)] + 0.7 * torch.randn(n, dim, generator=g)


DATA = {
    "topics": (_topics(3000, 24, 0), 64),
    "normal numbers": (torch.randn(2000, 8, generator=torch.Generator().manual_seed(1)), 50),
    "float64": (_topics(900, 12, 2).double(), 30),
    "many copies": (_topics(60, 12, 3).repeat(20, 1), 32),
    "fewer distinct than codes": (_topics(9, 12, 4).repeat(30, 1), 16),
    "constant": (torch.ones(300, 5), 8),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("iterations", [3, 25])
def test_the_same_bits_as_whole_comparisons(monkeypatch, name, iterations):
    x, k = DATA[name]
    found = []
    for dim in (NEVER, ALWAYS):
        monkeypatch.setattr(clustering, "BOUNDS_DIM", dim)
        found.append(clustering.kmeans(InMemory(x, rows=701), k, seed=5, iterations=iterations))
    (centroid, code), (centroid_b, code_b) = found
    assert torch.equal(code, code_b)
    assert torch.equal(centroid, centroid_b)


def test_clusters_that_are_empty_at_the_start_are_filled_alike(monkeypatch):
    x = _topics(2000, 16, 6)
    initial = torch.cat([x[:20], x[:1] + 100 + torch.arange(4)[:, None]])  # four that no vector is near
    found = []
    for dim in (NEVER, ALWAYS):
        monkeypatch.setattr(clustering, "BOUNDS_DIM", dim)
        found.append(clustering.kmeans(InMemory(x), 24, seed=0, initial=initial, iterations=12))
    assert torch.equal(found[0][0], found[1][0])
    assert len(found[1][1].unique()) == 24


def test_most_rows_are_skipped_once_little_moves(monkeypatch):
    """Counts the rows that are compared with all centroids: that is what the bounds are for."""
    compared, whole = [], Bounds._whole

    def counted(self, x_BD, norm_B, row_B):
        compared.append(len(row_B))
        whole(self, x_BD, norm_B, row_B)

    monkeypatch.setattr(Bounds, "_whole", counted)
    monkeypatch.setattr(clustering, "BOUNDS_DIM", ALWAYS)
    x = _topics(3000, 24, 0)
    clustering.kmeans(InMemory(x), 64, seed=5, iterations=25)
    assert compared[0] == len(x)
    assert compared[-1] < len(x) / 4
