"""Tokenizer metrics with values worked out by hand."""

from __future__ import annotations

import itertools
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
    variance = float(np.square(x - x.mean(0)).sum(1).mean())
    assert metrics.reconstruction_loss(x, x, variance) == 0.0
    assert metrics.reconstruction_loss(x, np.broadcast_to(x.mean(0), x.shape), variance) == pytest.approx(1.0)
    assert metrics.reconstruction_loss(x, x + np.array([1.0, 0.0]), variance) == pytest.approx(2 / 10)
    assert metrics.reconstruction_loss(x[:1], x[:1] + np.array([1.0, 0.0]), variance) == pytest.approx(1 / 5)
    assert metrics.reconstruction_loss(x[:0], x[:0], variance) is None


def test_changed_ids_counts_what_moved_and_what_is_gone():
    ids, codes = np.array([1, 3, 2]), np.array([[0, 0, 0], [0, 0, 2], [0, 0, 1]])
    more = np.concatenate([codes, [[9, 9, 9]]])
    assert metrics.changed_ids(ids, codes, np.array([1, 3, 2, 4]), more) == 0
    assert metrics.changed_ids(ids, codes, np.array([2, 1, 4]), np.array([[0, 0, 1], [0, 0, 1], [0, 0, 2]])) == 2
    assert metrics.changed_ids(ids, codes, ids[:0], codes[:0]) == 3
    assert metrics.changed_ids(ids[:0], codes[:0], ids, codes) == 0


def test_churn_counts_an_item_from_the_first_code_that_differs():
    before = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    after = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 2], [5, 1, 2]])
    assert metrics.churn(before, after) == [0.25, 0.5, 0.75]


def test_neighbour_quality_against_all_pairs():
    """Few items, so that all pairs are sampled: the shares of a full enumeration."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (120, 3))
    tags = [sorted({int(c), *rng.integers(0, 12, 2).tolist()}) if i % 5 else [] for i, c in enumerate(codes[:, 0])]
    users, liked = rng.integers(0, 40, 500), rng.integers(0, 120, 500)
    found = metrics.neighbour_quality(codes, tags, users, liked, seed=0)
    viewers = [set(users[liked == i]) for i in range(120)]
    for name, signal in (("tags", [set(t) for t in tags]), ("viewers", viewers)):
        for depth in (0, 1):
            pairs = [(a, b) for a, b in itertools.combinations(range(120), 2) if signal[a] and signal[b]]
            pairs = [(a, b) for a, b in pairs if (codes[a, :depth] == codes[b, :depth]).all()]
            share = np.mean([bool(signal[a] & signal[b]) for a, b in pairs])
            assert found[name][f"prefix_{depth}" if depth else "random"] == pytest.approx(share, abs=0.01)
    assert found["tags"]["lift"] > 1.5 > found["viewers"]["lift"]
    none = metrics.neighbour_quality(codes[:3], [[], [], []], users[:0], liked[:0], seed=0)
    assert none["tags"] == {"prefix_1": None, "prefix_2": None, "random": None, "lift": None}


def test_code_tree_shows_the_largest_branches_with_their_tags():
    tree = metrics.code_tree(CODES, [[7], [7, 9], [7], []], ["", "x" * 200, "c", "d"])
    assert [branch["code"] for branch in tree] == [0, 2]
    assert tree[0]["items"] == 3 and tree[0]["next_codes"] == 1
    second = tree[0]["children"]
    assert [(b["code"], b["items"], b["next_codes"]) for b in second] == [(1, 3, 2)]
    assert [(b["code"], b["items"], b["example"]) for b in second[0]["children"]] == [(2, 2, "x" * 80), (3, 1, "c")]
    assert "children" not in second[0]["children"][0]
    assert tree[0]["top_tags"] == [{"tag": 7, "share": 1.0}, {"tag": 9, "share": pytest.approx(1 / 3)}]
    assert tree[0]["example"] == "x" * 80
