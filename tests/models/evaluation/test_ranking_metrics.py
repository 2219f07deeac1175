"""Recall, NDCG and the bootstrap with values worked out by hand; the popularity floors against a counter."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from models.evaluation.floors import popularity, rank_popular
from models.evaluation.metrics import bootstrap_interval, ranking_metrics
from tests.models.conftest import CLICK, LIKE, LONG_VIEW, Row, write_training_set


def _ranked(*rows: list[int], width: int = 100) -> np.ndarray:
    return np.array([row + [-1] * (width - len(row)) for row in rows])


def test_recall_and_ndcg_by_hand():
    ranked = _ranked([7, 1, 2, 3], [*range(100, 112), 5, 6])
    got = ranking_metrics(ranked, [np.array([1, 3, 99]), np.array([6])])
    assert got["recall@10"].tolist() == [2 / 3, 0.0]
    assert got["recall@50"].tolist() == [2 / 3, 1.0]
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    np.testing.assert_allclose(got["ndcg@10"], [dcg / ideal, 0])
    np.testing.assert_allclose(got["ndcg@50"], [dcg / ideal, 1 / math.log2(15)])


def test_a_perfect_list_is_one_also_with_more_relevant_items_than_places():
    got = ranking_metrics(_ranked(list(range(100))), [np.arange(300)])
    assert got["ndcg@10"][0] == pytest.approx(1) and got["ndcg@100"][0] == pytest.approx(1)
    assert got["recall@10"][0] == pytest.approx(10 / 300)


def test_an_empty_place_is_no_hit():
    """Also not when -1 is somebody's item id: an empty place holds nothing."""
    got = ranking_metrics(_ranked([4], []), [np.array([-1, 4]), np.array([-1])])
    assert got["recall@100"].tolist() == [0.5, 0.0]


def test_bootstrap_is_seeded_and_covers_the_mean():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert low < values.mean() < high
    error = values.std() / 20
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert bootstrap_interval(np.full(5, 0.25), seed=0) == (0.25, 0.25)


def test_popularity_counts_positives_of_all_sets_and_breaks_ties_by_id(tmp_path):
    rng = np.random.default_rng(0)
    paths, counter = [], Counter()
    for day in range(3):
        rows = []
        for user in range(6):
            shown = [[int(rng.integers(9)), int(rng.choice([0, CLICK, LONG_VIEW, LIKE])), 255, 1, 1] for _ in range(5)]
            counter.update(item for item, label, *_ in shown if label in (LONG_VIEW, LIKE))
            rows.append(Row(user, shown=shown))
        paths.append(write_training_set(tmp_path / f"{day}.parquet", rows))
    ids, counts = popularity(paths)
    expected = sorted(counter, key=lambda i: (-counter[i], i))
    assert ids.tolist() == expected and counts.tolist() == [counter[i] for i in expected]


def test_rank_popular_skips_what_a_user_has_seen():
    popular = np.array([5, 3, 8, 1])
    seen = [np.array([], np.int64), np.array([5, 8]), np.array([5, 3, 8, 1]), np.array([77, 5])]
    assert rank_popular(popular, seen, 3).tolist() == [[5, 3, 8], [3, 1, -1], [-1, -1, -1], [3, 8, 1]]
