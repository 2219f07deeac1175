"""AUC, GAUC, intervals and calibration by hand, against scikit-learn and against loops over pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from models.reward.quality import Z95, auc, auc_gap, calibration, gauc, gauc_gap, midranks


def rows(seed: int, n: int, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (with ties), targets and users; a user's rows are alike in both."""
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=n)
    taste = rng.normal(size=users)[user]
    score = np.round(taste + rng.normal(size=n), 1)
    return score, (taste + rng.normal(size=n) > 0.5).astype(float), user


@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_auc_equals_scikit_learn_with_ties(pairs):
    score, y = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)
    found = auc(score, y, np.arange(len(y)))
    if len(set(y)) < 2:
        assert found is None
    else:
        assert found.value == pytest.approx(roc_auc_score(y, score))
        assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("y", [[], [1.0], [0.0, 0.0]])
def test_auc_of_one_class_is_unknown(y):
    nothing = np.zeros(len(y))
    assert auc(nothing, np.array(y), nothing) is None and auc_gap(nothing, nothing, np.array(y), nothing) is None
    assert gauc(nothing, np.array(y), nothing, 0) is None
    assert gauc_gap(nothing, nothing, np.array(y), nothing, 0) is None


def test_auc_by_hand():
    users = np.arange(3)
    assert auc(np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.0, 1.0]), users).value == 1.0
    assert auc(np.array([0.3, 0.2, 0.1]), np.array([0.0, 0.0, 1.0]), users).value == 0.0
    tied = auc(np.array([0.5, 0.5]), np.array([0.0, 1.0]), users[:2])
    assert (tied.value, tied.low, tied.high) == (0.5, 0.0, 1.0)  # one user a side says nothing about the spread


def test_midranks_within_groups():
    score, group = np.array([3.0, 1.0, 1.0, 9.0, 2.0]), np.array([0, 0, 0, 7, 7])
    assert midranks(score, group).tolist() == [3.0, 1.5, 1.5, 2.0, 1.0]
    assert midranks(np.empty(0), np.empty(0)).tolist() == []


def _components(score: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's components by the definition: a loop over pairs."""
    pos, neg = score[y > 0], score[y <= 0]
    psi = [[1.0 if p > n else 0.5 if p == n else 0.0 for n in neg] for p in pos]
    return np.mean(psi, 1), np.mean(psi, 0)


def test_with_one_row_a_user_the_interval_is_delongs():
    score, y, _ = rows(1, 60, 60)
    other = np.round(score + np.random.default_rng(9).normal(size=60), 1)
    found, gap = auc(score, y, np.arange(60)), auc_gap(score, other, y, np.arange(60))
    v10, v01 = _components(score, y)
    o10, o01 = _components(other, y)
    # Users hold one row of one class, so the covariance of a user's positives and negatives is that of centred zeros.
    for est, a, b in ((found, v10, v01), (gap, v10 - o10, v01 - o01)):
        half = Z95 * np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        assert est.value == pytest.approx(a.mean())
        assert (est.low, est.high) == pytest.approx((est.value - half, est.value + half))


def test_clustered_interval_equals_obuchowskis_sums_and_is_wider_than_delongs():
    score, y, user = rows(2, 300, 30)
    v10, v01 = _components(score, y)
    theta, M, N = v10.mean(), len(v10), len(v01)
    S10 = S01 = S11 = 0.0
    pu, nu = user[y > 0], user[y <= 0]
    for u in set(user.tolist()):
        x, z = (v10[pu == u] - theta).sum(), (v01[nu == u] - theta).sum()
        S10, S01, S11 = S10 + x * x, S01 + z * z, S11 + x * z
    i10, i01, i = len(set(pu)), len(set(nu)), len(set(user))
    variance = i10 / ((i10 - 1) * M) * S10 / M + i01 / ((i01 - 1) * N) * S01 / N + 2 * i / ((i - 1) * M * N) * S11
    found = auc(score, y, user)
    assert found.high - found.value == pytest.approx(Z95 * variance**0.5)
    alone = auc(score, y, np.arange(300))
    assert alone.value == found.value and found.high - found.low > 1.3 * (alone.high - alone.low)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    covered = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y = (rng.random(120) < 0.3).astype(float)
        found = auc(y + rng.normal(size=120), y, np.arange(120))
        covered.append(found.low <= 0.7602 <= found.high)  # Phi(1 / sqrt 2)
    assert 0.9 < np.mean(covered) < 0.985


def test_the_gap_of_a_score_and_itself_is_nothing():
    score, y, user = rows(3, 100, 20)
    same = auc_gap(score, 2 * score + 1, y, user)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_gauc_by_hand():
    #          user 1: AUC 1, 3 rows      user 2: AUC 0.5, 2 rows    user 3: one class, left out
    score = np.array([0.9, 0.1, 0.2, 0.4, 0.4, 0.7, 0.8])
    y = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    user = np.array([1, 1, 1, 2, 2, 3, 3])
    found = gauc(score, y, user, seed=0)
    assert found.value == pytest.approx((3 * 1.0 + 2 * 0.5) / 5)
    assert (found.low, found.high) == (0.5, 1.0)  # two users: a resample may hold either alone


def test_gauc_is_the_weighted_mean_of_each_users_auc():
    score, y, user = rows(4, 400, 40)
    total = weight = 0.0
    for u in set(user.tolist()):
        own = user == u
        if 0 < y[own].sum() < own.sum():
            total, weight = total + own.sum() * roc_auc_score(y[own], score[own]), weight + own.sum()
    found = gauc(score, y, user, seed=1)
    assert found.value == pytest.approx(total / weight) and found.low < found.value < found.high
    assert found == gauc(score, y, user, seed=1) != gauc(score, y, user, seed=2)
    assert gauc(score + 100 * user, y, user, seed=1).value == pytest.approx(found.value)  # a user's level is no merit


def test_the_gap_of_gaucs_is_paired_within_users():
    score, y, user = rows(5, 400, 40)
    other = np.round(score + np.random.default_rng(3).normal(size=400), 1)
    gap = gauc_gap(score, other, y, user, seed=1)
    assert gap.value == pytest.approx(gauc(score, y, user, 1).value - gauc(other, y, user, 1).value)
    assert gap.low < gap.value < gap.high and gap == gauc_gap(score, other, y, user, seed=1)
    same = gauc_gap(score, 2 * score + user, y, user, seed=1)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_calibration_by_hand():
    probability, y = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    error, ratio = calibration(probability, y, bins=2)
    assert error == pytest.approx((abs(0.3 - 1) + abs(1.7 - 2)) / 4)
    assert ratio == pytest.approx(2 / 3)
    assert calibration(probability, np.zeros(4))[1] is None
    assert calibration(np.full(10, 0.3), np.array([1.0] * 3 + [0.0] * 7), bins=1) == pytest.approx((0, 1))
