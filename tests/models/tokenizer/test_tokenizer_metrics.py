"""Tokenizer metrics with values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.tokenizer import metrics

CODES = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 3], [2, 1, 0]])


def test_utilisation_and_entropy_use_the_natural_logarithm():
    result = metrics.level_metrics(CODES, 4)
    assert result["utilization"] == [0.5, 0.25, 0.75]
    skewed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert result["entropy"] == pytest.approx([skewed, 0.0, 1.5 * math.log(2)])
    assert result["max_entropy"] == pytest.approx(math.log(4))


def test_uniform_codes_reach_the_published_maximum():
    codes = np.repeat(np.arange(8192)[:, None], 3, 1)
    assert metrics.level_metrics(codes, 8192)["entropy"][0] == pytest.approx(9.0109, abs=1e-4)


def test_collision_rate_counts_every_item_that_shares():
    assert metrics.collision_rate(CODES) == 0.5
    assert metrics.collision_rate(CODES[1:]) == 0.0
    assert metrics.collision_rate(np.empty((0, 3), int)) == 0.0


def test_collision_rate_with_taken_tuples_is_the_share_of_the_given_items():
    taken = np.array([[2, 1, 0], [9, 9, 9]])
    assert metrics.collision_rate(CODES, taken) == 0.75  # the last is taken as well
    assert metrics.collision_rate(CODES[2:], taken) == 0.5
    assert metrics.collision_rate(CODES[2:3], taken) == 0.0
    assert metrics.collision_rate(np.empty((0, 3), int), taken) == 0.0


def test_reconstruction_loss_is_a_share_of_the_catalogues_variance():
    x = np.array([[0.0, 0.0], [2.0, 4.0]])
    assert metrics.reconstruction_loss(x, x, x) == 0.0
    assert metrics.reconstruction_loss(x, np.broadcast_to(x.mean(0), x.shape), x) == pytest.approx(1.0)
    assert metrics.reconstruction_loss(x, x + np.array([1.0, 0.0]), x) == pytest.approx(2 / 10)
    assert metrics.reconstruction_loss(x[:1], x[:1] + np.array([1.0, 0.0]), x) == pytest.approx(1 / 5)
    assert metrics.reconstruction_loss(x[:0], x[:0], x) is None


def test_changed_ids_counts_what_moved_and_what_is_gone():
    before = {1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 0, 2)}
    assert metrics.changed_ids(before, {**before, 4: (9, 9, 9)}) == 0
    assert metrics.changed_ids(before, {1: (0, 0, 1), 2: (0, 0, 1), 4: (0, 0, 2)}) == 2


def test_code_tree_shows_the_largest_branches_with_their_tags():
    tree = metrics.code_tree(CODES, [[7], [7, 9], [7], []], ["", "x" * 200, "c", "d"], branches=1)
    assert len(tree) == 1
    assert tree[0]["code"] == 0 and tree[0]["items"] == 3 and tree[0]["second_level_codes"] == 1
    assert tree[0]["top_tags"] == [{"tag": 7, "share": 1.0}, {"tag": 9, "share": pytest.approx(1 / 3)}]
    assert tree[0]["example"] == "x" * 80
