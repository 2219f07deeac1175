"""EASE against one ridge regression an item; the day's protocol on a log of a few rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from benchmarks.quality.kuairand import HISTORY, LOG, Day, baselines, cosine, ease, rank, read_day


def test_ease_is_the_ridge_regression_of_each_item_on_all_others() -> None:
    x = (np.random.default_rng(0).random((60, 9)) < 0.3).astype(float)
    found, gram = ease(sp.csr_matrix(x), 5.0), x.T @ x
    for j in range(9):
        others = np.delete(np.arange(9), j)
        a = gram[np.ix_(others, others)] + 5.0 * np.eye(8)
        np.testing.assert_allclose(found[others, j], np.linalg.solve(a, gram[others, j]), rtol=1e-3, atol=1e-5)
        assert found[j, j] == 0


def test_cosine_by_hand() -> None:
    found = cosine(sp.csr_matrix(np.array([[1.0, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0]])))
    np.testing.assert_allclose(found, [[0, 0.5, 0.5], [0.5, 0, 0], [0.5, 0, 0]], atol=1e-6)


def write_logs(folder: Path, time_ms: bool = False) -> None:
    flags = ["long_view", "is_like", "is_follow", "is_forward"]
    rows = [
        (1, 10, 20220504, 1, 0, 0, 0),
        (1, 10, 20220504, 1, 0, 0, 0),  # an exact duplicate
        (1, 11, 20220505, 0, 0, 0, 0),  # shown, not liked
        (1, 11, 20220506, 1, 0, 0, 0),  # liked today, but shown before
        (1, 12, 20220506, 0, 1, 0, 0),  # wanted
        (1, 13, 20220506, 0, 0, 0, 0),  # not positive
        (2, 12, 20220505, 1, 0, 0, 0),
        (2, 14, 20220506, 0, 0, 0, 0),  # no positive today: the user does not count
        (3, 10, 20220506, 0, 0, 0, 1),  # wanted, by a user who was never seen
    ]
    log = pd.DataFrame(rows, columns=["user_id", "video_id", "date", *flags])
    (log.assign(time_ms=log["date"]) if time_ms else log).to_csv(folder / LOG, index=False)
    old = pd.DataFrame({"user_id": [2], "pos": [0], "video_id": [15], "long_view": [0], "is_like": [1]})
    old.to_parquet(folder / HISTORY)


def test_the_day_keeps_unseen_positives_and_what_came_before(tmp_path: Path) -> None:
    write_logs(tmp_path)
    day = read_day(tmp_path, 20220506)
    assert day.items.tolist() == [10, 11, 12, 13, 14, 15]
    assert day.rows.tolist() == [0, 2] and day.user_id.tolist() == [1, 3]
    assert [day.items[w].tolist() for w in day.wanted] == [[12], [10]]
    assert [sorted(day.items[s].tolist()) for s in day.seen] == [[10, 11], []]
    assert day.positive_UN.toarray().tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1], [0] * 6]
    assert day.shown_UN.toarray().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1], [0] * 6]
    assert day.recent_N.tolist() == [1, 0, 1, 0, 0, 0]
    for ranked in baselines(day, 1.0, 1.0).values():
        assert ranked.shape == (2, 6)
        assert set(day.items[ranked[0][:4]]) == {12, 13, 14, 15}  # what the first user saw stands last
    with pytest.raises(ValueError, match="KuaiRand-Pure"):
        read_day(tmp_path / "nowhere", 20220506)


def test_what_was_shown_together_finds_what_likes_do_not() -> None:
    """Nobody likes anything but item 0 and the wanted one; who was shown 1 was shown 2, who was shown 3 was shown 4."""
    shown = np.zeros((60, 5))
    shown[:, 0] = 1
    shown[:30, 1:3] = 1
    shown[30:, 3:] = 1
    shown[0, 2] = shown[59, 4] = 0
    liked = np.zeros((60, 5))
    liked[:, 0] = 1
    day = Day(
        items=np.arange(5),
        user_id=np.array([0, 59]),
        positive_UN=sp.csr_matrix(liked),
        shown_UN=sp.csr_matrix(shown),
        recent_N=liked.sum(0),
        rows=np.array([0, 59]),
        seen=[np.array([0, 1]), np.array([0, 3])],
        wanted=[np.array([2]), np.array([4])],
    )
    found = baselines(day, 1.0, 1.0)["EASE of everything shown, lambda 1"]
    assert found[:, 0].tolist() == [2, 4]


def test_ease_finds_the_partner_that_popularity_does_not() -> None:
    """Items come in pairs; half of the users lack the partner of their last item."""
    rng = np.random.default_rng(1)
    x = np.zeros((400, 20))
    for u in range(400):
        for pair in rng.permutation(10)[:3]:
            x[u, 2 * pair] = x[u, 2 * pair + 1] = 1
    wanted = [int(rng.choice(np.flatnonzero(row))) for row in x[:100]]
    for u, item in enumerate(wanted):
        x[u, item] = 0
    day = Day(
        items=np.arange(20),
        user_id=np.arange(100),
        positive_UN=sp.csr_matrix(x),
        shown_UN=sp.csr_matrix(x),
        recent_N=x.sum(0),
        rows=np.arange(100),
        seen=[np.flatnonzero(row) for row in x[:100]],
        wanted=[np.array([w]) for w in wanted],
    )
    weights = ease(day.positive_UN, 10.0)
    assert (rank(day, lambda rows: x[rows] @ weights)[:, 0] == wanted).all()
