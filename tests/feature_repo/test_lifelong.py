"""Hierarchical K-means of user histories."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.content import content_vectors
from feature_repo.lifelong import GROUP_SIZE
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
