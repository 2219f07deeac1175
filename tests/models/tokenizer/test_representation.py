"""Item vectors: content features, PPMI by hand, and items nobody has liked."""

from __future__ import annotations

import numpy as np
import pytest

from models.tokenizer.ppmi import ppmi
from models.tokenizer.representation import Representation, RepresentationConfig, content_matrix


def test_content_rows_have_unit_norm_or_are_empty():
    x = content_matrix([[1, 2], [], []], np.array([5, 7, -1]), ["Ein Wort", "", ""]).toarray()
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), [1, 1, 0], atol=1e-12)


def test_content_depends_on_the_words_not_on_the_other_items():
    alone = content_matrix([[3]], np.array([1]), ["cats and dogs"]).toarray()
    among = content_matrix([[9], [3]], np.array([2, 1]), ["birds", "CATS, and dogs!"]).toarray()
    np.testing.assert_allclose(alone[0], among[1])


def test_ppmi_by_hand():
    # Users 0: {0, 1}, 1: {0, 1, 2}, 2: {3}; one vote a pair, a user weighs 1 / (number of items).
    users, items = np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 0, 1, 2, 3])
    co = np.zeros((4, 4))
    co[0, 1] = co[1, 0] = 1 / 2 + 1 / 3
    co[0, 2] = co[2, 0] = co[1, 2] = co[2, 1] = 1 / 3
    margin, total = co.sum(1), co.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(co * total / np.outer(margin, margin))
    expected = np.where(np.isfinite(expected) & (expected > 0), expected, 0)
    np.testing.assert_allclose(ppmi(users, items, 4).toarray(), expected, atol=1e-12)
    assert expected.max() > 0


def _random_source(items: int = 200, cold=(0, 5, 150)):
    rng = np.random.default_rng(0)
    warm = np.setdiff1d(np.arange(items), cold)
    users, liked = rng.integers(0, 50, 3000), rng.choice(warm, 3000)
    content = content_matrix([[i % 7] for i in range(items)], np.arange(items) % 11, [""] * items)
    return content, users, liked


def test_items_nobody_liked_get_the_vector_that_content_alone_gives():
    """Wherever they stand in the catalogue: rounding noise of the SVD is no signal."""
    cold = [0, 5, 150]
    content, users, liked = _random_source(cold=cold)
    representation, vectors = Representation.fit(RepresentationConfig(), content, users, liked, seed=1)
    np.testing.assert_allclose(vectors[cold], representation.content_only(content)[cold], atol=1e-5)


def test_both_halves_have_the_norm_of_their_weight_and_the_seed_decides():
    content, users, liked = _random_source()
    config = RepresentationConfig(content_dim=8, collaborative_dim=16, collaborative_weight=3.0)
    _, vectors = Representation.fit(config, content, users, liked, seed=1)
    assert vectors.shape == (200, 8 + 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:, :8], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, 8:], axis=1), 3, rtol=1e-5)
    assert np.array_equal(vectors, Representation.fit(config, content, users, liked, seed=1)[1])


@pytest.mark.parametrize("items", [1, 2, 5])
def test_without_any_interaction_vectors_are_finite(items):
    content = content_matrix([[i] for i in range(items)], np.full(items, -1), [""] * items)
    none = np.empty(0, np.int64)
    _, vectors = Representation.fit(RepresentationConfig(), content, none, none, seed=0)
    assert np.isfinite(vectors).all() and len(vectors) == items
