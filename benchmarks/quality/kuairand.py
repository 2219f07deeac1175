"""KuaiRand-Pure: the day's protocol, the floors and EASE. `kuairand_table.py` makes the table.

    day = read_day(Path("logs/kuairand-pure"), 20220506)
    baselines(day)["EASE, lambda 500"]                      # [U, TOP] indices into day.items

Positive: long view, like, follow or forward. A user counts who has a positive on the day that they were never shown
before; seen items leave every list; recall and NDCG are means over users, by slice as in `onerec eval`. EASE is the
closed form of Steck 2019 (arXiv 1905.03375, equation 8) with one regulariser; it is the bar a trained model must pass.
It is given the positives, as usual, and everything that was shown: whose impressions two users share says more of what
they will be shown next than what they liked of it.

Legend: U users, N items.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from scipy.linalg import inv

from benchmarks.quality.lists import TOP

LOG, HISTORY = "log_standard_4_25_to_5_06_pure.csv", "history_4_08_to_4_24_last50.parquet"
POSITIVE = ("long_view", "is_like", "is_follow", "is_forward")
LAMBDA, LAMBDA_SHOWN, RECENT_DAYS, SHRINK = 500.0, 1000.0, 3, 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Day:
    """What is known before the day, and what is wanted of it. Items are indices into `items`.

    positive_UN, shown_UN: users' positive items, and all they were shown, before the day. seen, wanted: item indices of
    each evaluated user, numbered by `rows` of positive_UN, whose ids are `user_id`. recent_N: positives of each item in
    the last RECENT_DAYS days.
    """

    items: np.ndarray
    user_id: np.ndarray
    positive_UN: sp.csr_matrix
    shown_UN: sp.csr_matrix
    recent_N: np.ndarray
    rows: np.ndarray
    seen: list[np.ndarray]
    wanted: list[np.ndarray]


def read_day(data: Path, day: int) -> Day:
    """From the official log and the shortened history; exact duplicate rows of the log count once."""
    if not (data / LOG).exists():
        raise ValueError(f"{data} holds no {LOG}; --data is a folder of KuaiRand-Pure")
    frame = pc.read_csv(data / LOG).to_pandas().drop_duplicates()
    old = pq.read_table(data / HISTORY).to_pandas()
    good = frame[list(POSITIVE)].any(axis=1).to_numpy()
    before, today = (frame["date"] < day).to_numpy(), (frame["date"] == day).to_numpy()
    recent = before & frame["date"].isin(np.unique(frame["date"][before])[-RECENT_DAYS:]).to_numpy()
    old_good = ((old["long_view"] > 0) | (old["is_like"] > 0)).to_numpy()
    user, item = (np.concatenate([frame[c].to_numpy(), old[c].to_numpy()]) for c in ("user_id", "video_id"))
    users, user = np.unique(user, return_inverse=True)
    items, item = np.unique(item, return_inverse=True)
    known = np.concatenate([before, np.ones(len(old), bool)])
    liked = known & np.concatenate([good, old_good])
    shape = (len(users), len(items))
    positive = sp.csr_matrix((np.ones(liked.sum()), (user[liked], item[liked])), shape=shape)
    positive.data[:] = 1
    shown = sp.csr_matrix((np.ones(known.sum()), (user[known], item[known])), shape=shape)
    shown.data[:] = 1
    asked = np.flatnonzero(today & good)
    target = sp.csr_matrix((np.ones(len(asked)), (user[asked], item[asked])), shape=shape)
    target = (target - target.multiply(shown > 0)).tocsr()
    target.eliminate_zeros()
    rows = np.flatnonzero(np.diff(target.indptr))
    return Day(
        items=items,
        user_id=users[rows],
        positive_UN=positive,
        shown_UN=shown,
        recent_N=np.bincount(item[: len(frame)][recent & good], minlength=len(items)).astype(float),
        rows=rows,
        seen=[shown[u].indices for u in rows],
        wanted=[target[u].indices for u in rows],
    )


def ease(positive_UN: sp.csr_matrix, regulariser: float) -> np.ndarray:
    """Item-item weights [N, N] with an empty diagonal that rebuild the positives best.

    B_ij = -P_ij / P_jj with P = (X'X + regulariser I)^-1.
    """
    gram = (positive_UN.T @ positive_UN).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += regulariser
    weights = inv(gram, overwrite_a=True, check_finite=False)
    weights = weights / -np.diag(weights)
    np.fill_diagonal(weights, 0)
    return weights


def cosine(positive_UN: sp.csr_matrix) -> np.ndarray:
    """Item-item cosine of the positives [N, N] with an empty diagonal."""
    norm = np.sqrt(np.maximum(np.asarray(positive_UN.sum(0)).ravel(), 1))
    x = positive_UN @ sp.diags(1 / norm)
    weights = (x.T @ x).toarray().astype(np.float32)
    np.fill_diagonal(weights, 0)
    return weights


def rank(day: Day, score_of_rows, chunk: int = 512) -> np.ndarray:
    """The TOP unseen items of each evaluated user [U, TOP] by `score_of_rows(rows) -> [rows, N]`."""
    out = np.empty((len(day.rows), min(TOP, len(day.items))), np.int64)
    for start in range(0, len(day.rows), chunk):
        score = np.array(score_of_rows(day.rows[start : start + chunk]), np.float32)
        for line, seen in zip(score, day.seen[start : start + chunk]):
            line[seen] = -np.inf
        # Ties go by item, whatever the processor: a partition leaves them in another order on another one.
        out[start : start + chunk] = np.argsort(-score, axis=1, kind="stable")[:, : out.shape[1]]
    return out


def baselines(day: Day, regulariser: float = LAMBDA, of_shown: float = LAMBDA_SHOWN) -> dict[str, np.ndarray]:
    """Lists [U, TOP] of every row of the table; the regularisers of EASE on positives and on everything shown."""
    x, every = day.positive_UN, np.asarray(day.positive_UN.sum(0)).ravel()
    found = {
        "most popular, all time": rank(day, lambda rows: np.tile(every, (len(rows), 1))),
        f"most popular, last {RECENT_DAYS} days": rank(day, lambda rows: np.tile(day.recent_N, (len(rows), 1))),
    }
    near = cosine(x)
    found["item co-occurrence, cosine"] = rank(day, lambda rows: x[rows] @ near)
    weights, popular = ease(x, regulariser), SHRINK * np.log1p(day.recent_N)
    found[f"EASE, lambda {regulariser:g}"] = rank(day, lambda rows: x[rows] @ weights)
    found[f"EASE + {SHRINK} log popularity"] = rank(day, lambda rows: x[rows] @ weights + popular)
    weights, shown = ease(day.shown_UN, of_shown), day.shown_UN
    found[f"EASE of everything shown, lambda {of_shown:g}"] = rank(day, lambda rows: shown[rows] @ weights)
    return found
