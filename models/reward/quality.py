"""How well a score ranks and how honest a probability is: AUC with intervals by users, GAUC, calibration.

    auc(score, y, user)                     # Estimate(value, low, high), 95 %
    auc_gap(score, other, y, user)          # the difference of two scores' AUC on the same rows
    gauc(score, y, user, seed)              # mean of the users' AUC, weighted by their impressions; gauc_gap likewise
    calibration(probability, y)             # expected calibration error, predicted / observed

Impressions of one user resemble each other, so an interval that counts them as independent is too narrow. Users are the
unit here: Obuchowski's clustered form of DeLong's variance (Biometrics 53:567), which is DeLong's with one row a user.
"""

from __future__ import annotations

import dataclasses

import numpy as np

Z95 = 1.959964
BINS, RESAMPLES = 20, 500


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval. With fewer than two users on a side the interval is everything possible."""

    value: float
    low: float
    high: float


def midranks(score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rank of each row among the rows of its group, from 1; ties share the mean of their ranks."""
    order = np.lexsort((score, group))
    s, g = score[order], group[order]
    n = len(order)
    new_group = np.r_[True, g[1:] != g[:-1]][:n]
    new_run = new_group | np.r_[True, s[1:] != s[:-1]][:n]
    first = np.flatnonzero(new_run)
    last = np.r_[first[1:], n] - 1
    run = np.cumsum(new_run) - 1
    start = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    ranks = np.empty(n)
    ranks[order] = (first[run] + last[run]) / 2 - start + 1
    return ranks


def auc(score: np.ndarray, y: np.ndarray, user: np.ndarray) -> Estimate | None:
    """Area under the ROC curve with its interval over users; None when only one class is present."""
    if not 0 < y.sum() < len(y):
        return None
    return _estimate(_placements(score, y), y, user, 0.0, 1.0)


def auc_gap(score: np.ndarray, other: np.ndarray, y: np.ndarray, user: np.ndarray) -> Estimate | None:
    """AUC of `score` minus that of `other` on the same rows, paired; None when only one class is present."""
    if not 0 < y.sum() < len(y):
        return None
    return _estimate(_placements(score, y) - _placements(other, y), y, user, -1.0, 1.0)


def _placements(score: np.ndarray, y: np.ndarray) -> np.ndarray:
    """DeLong's structural components: the share of rows of the other class that a row stands right of (ties half)."""
    above = midranks(score, np.zeros(len(score))) - midranks(score, y)  # rows of the other class ranked below
    positives = y.sum()
    return np.where(y > 0, above / (len(y) - positives), 1 - above / positives)


def _estimate(part: np.ndarray, y: np.ndarray, user: np.ndarray, least: float, most: float) -> Estimate:
    """Mean of the positives' components (that of the negatives is the same) and its clustered interval."""
    user = np.unique(user, return_inverse=True)[1]
    sums, counts, users = [], [], []
    theta = float(part[y > 0].mean())
    for side in (y > 0, y <= 0):
        count = np.bincount(user[side], minlength=user.max() + 1)
        sums.append((np.bincount(user[side], part[side], minlength=len(count)) - count * theta) / side.sum())
        counts.append(int(side.sum()))
        users.append(int((count > 0).sum()))
    if min(users) < 2:
        return Estimate(theta, least, most)
    pos, neg = sums
    factor = [n / (n - 1) for n in (*users, len(pos))]
    variance = factor[0] * (pos**2).sum() + factor[1] * (neg**2).sum() + 2 * factor[2] * (pos * neg).sum()
    half = Z95 * float(np.sqrt(max(variance, 0.0)))
    return Estimate(theta, max(theta - half, least), min(theta + half, most))


def gauc(score: np.ndarray, y: np.ndarray, user: np.ndarray, seed: int) -> Estimate | None:
    """Mean AUC within users, weighted by their impressions, over users with both classes; None without such a user.

    The interval is a seeded bootstrap over those users.
    """
    return _mean_over_users(*_within_users(score, y, user), seed)


def gauc_gap(score: np.ndarray, other: np.ndarray, y: np.ndarray, user: np.ndarray, seed: int) -> Estimate | None:
    """GAUC of `score` minus that of `other` on the same rows, paired within users; None where gauc has none."""
    rows, own = _within_users(score, y, user)
    return _mean_over_users(rows, own - _within_users(other, y, user)[1], seed)


def _within_users(score: np.ndarray, y: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and AUC of each user with both classes."""
    user = np.unique(user, return_inverse=True)[1]
    rows, positives = np.bincount(user), np.bincount(user, y > 0)
    rank_sum = np.bincount(user, midranks(score, user) * (y > 0))
    both = (positives > 0) & (positives < rows)
    n, p = rows[both].astype(float), positives[both]
    return n, (rank_sum[both] - p * (p + 1) / 2) / (p * (n - p))


def _mean_over_users(rows: np.ndarray, value: np.ndarray, seed: int) -> Estimate | None:
    if not len(rows):
        return None
    drawn = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.quantile((rows * value)[drawn].sum(1) / rows[drawn].sum(1), [0.025, 0.975])
    return Estimate(float((rows * value).sum() / rows.sum()), float(low), float(high))


def calibration(probability: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[float, float | None]:
    """Expected calibration error, and predicted over observed positives (None when none was observed).

    Bins hold equal counts: with equal widths every row of a rare label would share the first one.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    error = sum(abs(probability[part].sum() - y[part].sum()) for part in parts) / len(y)
    observed = float(y.sum())
    return float(error), float(probability.sum()) / observed if observed else None
