"""Hierarchical K-means of user histories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feature_repo.content import content_vectors
from feature_repo.lifelong import GRID, GROUP_SIZE, ITERATIONS, MAX_EVENTS, SAMPLE, group_limit
from feature_repo.lifelong import compress as compress_items


def compress(user, vector):
    return compress_items(user, np.arange(len(user)), vector)


def _histories(seed: int, users: int, distinct: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(1, 120, users))
    catalogue = rng.normal(size=(distinct, 16)).astype(np.float32)
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    return user, catalogue[rng.integers(0, distinct, len(user))]


@pytest.mark.parametrize("distinct", [1, 2, 500], ids=["all equal", "two kinds", "many"])
def test_groups_are_small_and_belong_to_one_user(distinct: int) -> None:
    user, vector = _histories(1, 30, distinct)
    group, representative = compress(user, vector)
    assert np.bincount(group).max() <= GROUP_SIZE
    assert len(np.unique(np.stack([group, user]), axis=1).T) == group.max() + 1  # no group spans two users
    assert np.array_equal(group[representative], np.arange(group.max() + 1))
    assert (np.diff(user[representative]) >= 0).all()


def test_a_user_is_clustered_alike_alone_and_beside_others() -> None:
    user, vector = _histories(2, 12, 80)
    group, _ = compress(user, vector)
    for u in range(12):
        alone, _ = compress(user[user == u], vector[user == u])
        _, together = np.unique(group[user == u], return_inverse=True)
        assert np.array_equal(alone, together)


def test_representative_is_nearest_to_the_centre_and_latest_of_equals() -> None:
    user = np.zeros(3, np.int64)
    assert compress(user, np.array([[0.0], [0.4], [1.0]], np.float32))[1].tolist() == [1]
    assert compress(user, np.full((3, 2), 0.5, np.float32))[1].tolist() == [2]


def test_clusters_separate_content() -> None:
    vector = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)[[0, 4, 1, 5, 2, 6, 3, 7]]
    group, _ = compress(np.zeros(8, np.int64), vector)
    for g in range(group.max() + 1):
        assert len(np.unique(vector[group == g], axis=0)) == 1


def test_empty_history() -> None:
    group, representative = compress(np.empty(0, np.int64), np.empty((0, 16), np.float32))
    assert len(group) == len(representative) == 0


def test_content_vectors_prefer_the_sources_embedding_and_tell_content_apart() -> None:
    items = content_vectors([[1], [1], [2], None], [5, 5, 5, -1], ["a cat", "a cat", "a cat", None], [None] * 4)
    assert np.array_equal(items[0], items[1]) and not np.array_equal(items[0], items[2])
    assert not items[3].any() and np.allclose(np.linalg.norm(items[:3], axis=1), 1)
    embedded = content_vectors([[1], [2]], [1, 2], [None, None], [[1.0, 0.0, 2.0], [1.0, 0.0, 2.0]])
    assert np.array_equal(embedded[0], embedded[1])


def _reference(x_ND: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """The groups of one user and their representatives, one group at a time, in float64."""
    x_ND, limit, done = np.trunc(x_ND.astype(np.float64) * GRID), int(group_limit(len(x_ND))), []

    def split(rows: np.ndarray) -> None:
        if len(rows) <= limit:
            done.append(rows.tolist())
            return
        n, k = len(rows), max(2, int(np.cbrt(len(rows)) + 1e-9))
        taken = min(n, SAMPLE * k)
        sample = x_ND[rows[[(i + 1) * n // taken - 1 for i in range(taken)]]]
        centre, nearest = [sample[-1]], np.full(taken, np.inf)
        while len(centre) < k:
            nearest = np.minimum(nearest, np.square(sample - centre[-1]).sum(1))
            centre.append(sample[nearest.argmax()])
        for _ in range(ITERATIONS):
            part = [np.square(np.array(centre) - x).sum(1).argmin() for x in sample]
            members = [sample[[p == j for p in part]] for j in range(k)]
            centre = [np.trunc(m.mean(0)) if len(m) else c for m, c in zip(members, centre)]
        part = np.array([np.square(np.array(centre) - x).sum(1).argmin() for x in x_ND[rows]])
        if part.min() == part.max():
            part = np.arange(n) * k // n
        for j in np.unique(part):
            split(rows[part == j])

    split(np.arange(len(x_ND)))
    chosen = []
    for rows in done:
        distance = np.square(x_ND[rows] - np.trunc(x_ND[rows].mean(0))).sum(1)
        chosen.append(rows[np.flatnonzero(distance == distance.min())[-1]])
    return done, chosen


@pytest.mark.parametrize("dims", [3, 64])
def test_equals_a_float64_reference_bit_by_bit(dims: int) -> None:
    """Also for users longer than a sample, with vectors in common, of one event, and whatever the batches."""
    rng = np.random.default_rng(dims)
    sizes = [1, 2, 4, 27, 64, 150, 700, 2500]
    catalogue = rng.normal(size=(400, dims)).astype(np.float32)
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    items = [rng.integers(0, 400, n) for n in sizes]
    group, representative = compress_items(np.repeat(np.arange(len(sizes)), sizes), np.concatenate(items), catalogue)
    at = 0
    for n, mine in zip(sizes, items):
        groups, chosen = _reference(catalogue[mine])
        found = group[at : at + n]
        assert [np.flatnonzero(found == g).tolist() for g in np.unique(found)] == groups
        assert (representative[np.unique(found)] - at).tolist() == chosen
        at += n


def test_a_long_history_is_told_whole_in_about_2000_rows() -> None:
    assert group_limit(np.array([1, 3000, 100_000])).tolist() == [3, 3, 100]
    rng = np.random.default_rng(0)
    catalogue = rng.normal(size=(3000, 16)).astype(np.float32)
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    group, _ = compress_items(np.zeros(20_000, np.int64), rng.integers(0, 3000, 20_000), catalogue)
    assert 1000 < group.max() + 1 < 4000 and np.bincount(group).max() <= 20


def test_errors_name_the_value_and_the_mend() -> None:
    with pytest.raises(ValueError, match=r"length 1\.4142; divide each by its length"):
        compress(np.zeros(2, np.int64), np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="give the newest 100000"):
        compress_items(np.zeros(MAX_EVENTS + 1, np.int64), np.zeros(MAX_EVENTS + 1, np.int64), np.ones((1, 1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits() -> None:
    rng = np.random.default_rng(9)
    catalogue = rng.normal(size=(5000, 128)).astype(np.float32)
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    user = np.sort(rng.integers(0, 40, 60_000))
    item = rng.integers(0, 5000, len(user))
    for ours, theirs in zip(
        compress_items(user, item, catalogue), compress_items(user, item, catalogue, device="cuda")
    ):
        assert np.array_equal(ours, theirs)
