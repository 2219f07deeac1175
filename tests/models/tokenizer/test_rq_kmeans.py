"""Residual K-means against brute force in float64, its determinism, and its degenerate inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.tokenizer import rq_kmeans


def _blobs(n: int, k: int, dim: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(k, dim)) * 5
    return torch.from_numpy((centre[rng.integers(k, size=n)] + rng.normal(size=(n, dim)) * 0.1).astype(np.float32))


@pytest.mark.parametrize("chunk", [7, 1000])
def test_assign_is_the_nearest_centroid(monkeypatch, chunk):
    monkeypatch.setattr(rq_kmeans, "CHUNK", chunk)  # 7 does not divide 50: the last chunk is shorter
    x, c = torch.randn(50, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    code, distance = rq_kmeans.assign(x, c)
    brute = (x[:, None] - c[None]).square().sum(-1)
    assert torch.equal(code, brute.argmin(1))
    torch.testing.assert_close(distance, brute.min(1).values)


def test_assign_of_nothing_is_empty():
    code, distance = rq_kmeans.assign(torch.empty(0, 6), torch.randn(9, 6))
    assert code.shape == distance.shape == (0,)


def test_kmeans_finds_separate_blobs_and_repeats_by_seed():
    x = _blobs(400, 8, 5, 0)
    centroid = rq_kmeans.kmeans(x, 8, seed=1)
    code, distance = rq_kmeans.assign(x, centroid)
    assert len(code.unique()) == 8
    assert distance.max() < 1.0  # blobs are 0.1 wide and far apart
    for k in range(8):
        torch.testing.assert_close(centroid[k], x[code == k].mean(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(centroid, rq_kmeans.kmeans(x, 8, seed=1))
    assert not torch.equal(centroid, rq_kmeans.kmeans(x, 8, seed=2))


def test_empty_cluster_takes_the_worst_served_vector(monkeypatch):
    x = torch.tensor([[0.0], [0.1], [0.2], [50.0]])
    monkeypatch.setattr(rq_kmeans, "_plus_plus", lambda *_: torch.tensor([[0.1], [900.0]]))  # nobody is near 900
    centroid = rq_kmeans.kmeans(x, 2, seed=0)
    torch.testing.assert_close(centroid.sort(0).values, torch.tensor([[0.1], [50.0]]))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_fewer_distinct_vectors_than_codes(rows):
    distinct = torch.randn(min(rows, 3), 4)
    x = distinct.repeat(rows // len(distinct) + 1, 1)[:rows]
    centroid = rq_kmeans.kmeans(x, 8, seed=0)
    assert centroid.shape == (8, 4)
    assert torch.isfinite(centroid).all()
    assert rq_kmeans.assign(x, centroid)[1].max() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_fewer_distinct_vectors_than_codes_end_early(monkeypatch, scale):
    """Every vector is a centroid from the start: what rounding leaves of a distance is no reason to go on."""
    x = (torch.randn(3, 96) * scale).repeat(700, 1)
    rounds, assign = [], rq_kmeans.assign
    monkeypatch.setattr(rq_kmeans, "assign", lambda *a: rounds.append(a[1]) or assign(*a))
    centroid = rq_kmeans.kmeans(x, 8, seed=0)
    assert len(rounds) <= 2
    torch.testing.assert_close(centroid, rounds[0], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_is_refused_by_row(bad):
    x = torch.randn(10, 4)
    x[6, 2] = bad
    with pytest.raises(ValueError, match="vector 6"):
        rq_kmeans.kmeans(x, 2, seed=0)


def test_residuals_shrink_and_decode_is_the_sum_of_centroids():
    x = torch.randn(500, 6, dtype=torch.float64)
    books = rq_kmeans.fit(x, levels=3, k=8, seed=0)
    codes = rq_kmeans.encode(x, books)
    assert codes.shape == (500, 3)
    error, residual = [x.square().sum().item()], x.clone()
    for level, book in enumerate(books):
        nearest = (residual[:, None] - book[None]).square().sum(-1).argmin(1)
        assert torch.equal(codes[:, level], nearest)
        residual -= book[nearest]
        error.append(residual.square().sum().item())
    assert error == sorted(error, reverse=True)
    assert error[-1] < 0.7 * error[0]
    torch.testing.assert_close(rq_kmeans.decode(codes, books), x - residual)


def test_fit_does_not_change_its_input_and_seeds_differ_by_level():
    x = torch.randn(100, 4)
    before = x.clone()
    first, second = rq_kmeans.fit(x, 2, 4, seed=5), rq_kmeans.fit(x, 2, 4, seed=5)
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
