"""Does a training set know the future? Every event inside the features of a row must be strictly earlier than each of
its impressions.

    leaks(training, events)          # no row: none leaks

Vectorised over all rows. The clock of the impressions and of the seen items is taken from the log itself, not from the
tables under test: the row's stamp is what the join trusted, so it proves nothing.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import DataError

PATHWAYS = ("short", "positive", "lifelong")


def leaks(training: pa.Table, log: pa.Table, day: pa.Scalar) -> pa.Table:
    """The rows that know an event not strictly earlier than one of their impressions: user_id, event_timestamp, what.

    training: a partition of the training set of log day `day` (a date). log: all impressions, user_id, item_id, dt and
    `ms` (unix milliseconds). Raises DataError when the impressions of the rows are not those of the log's day.
    """
    training = training.sort_by([("user_id", "ascending"), ("event_timestamp", "ascending")])
    first_R = _first_impression(training, log.filter(pc.equal(log["dt"], day)))
    found = []
    for name in PATHWAYS:
        time_s = training[f"{name}_time_s"].combine_chunks()
        row_E = np.repeat(np.arange(len(training)), time_s.value_lengths().to_numpy(zero_copy_only=False))
        late_E = time_s.flatten().to_numpy() * 1000 >= first_R[row_E]
        found.append(_found(training, np.unique(row_E[late_E]), name))
    found.append(_found(training, np.flatnonzero(_seen(training) > _known(training, first_R, log)), "seen"))
    return pa.concat_tables(found)


def _first_impression(training: pa.Table, today: pa.Table) -> np.ndarray:
    """When the first impression of each row happened: the lists of a user, end to end, are the user's log in order."""
    order = [("user_id", "ascending"), ("ms", "ascending"), ("item_id", "ascending")]
    mine = today.filter(pc.is_in(today["user_id"], training["user_id"].unique())).sort_by(order)
    shown = training["item_id"].combine_chunks()
    if not np.array_equal(shown.flatten().to_numpy(), mine["item_id"].to_numpy()):
        raise DataError("the training set does not hold the impressions of this day: build it again")
    lengths = shown.value_lengths().to_numpy(zero_copy_only=False)
    return mine["ms"].to_numpy()[np.cumsum(lengths) - lengths]


def _seen(training: pa.Table) -> np.ndarray:
    """How many events each row's seen items stand for."""
    return training["seen_item_id"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)


def _known(training: pa.Table, first_R: np.ndarray, log: pa.Table) -> np.ndarray:
    """How many events of the log each row may know: the user's, strictly before its first impression."""
    user_E, ms_E = log["user_id"].to_numpy(), log["ms"].to_numpy()
    # Users and instants as one sorted key; ranks instead of values, so that it fits an integer.
    moments = np.unique(ms_E)
    users = np.unique(user_E)
    key_E = np.sort(np.searchsorted(users, user_E) * (len(moments) + 1) + np.searchsorted(moments, ms_E))
    user_R = np.searchsorted(users, training["user_id"].to_numpy()) * (len(moments) + 1)
    before_R = np.searchsorted(key_E, user_R + np.searchsorted(moments, first_R))
    return before_R - np.searchsorted(key_E, user_R)


def _found(training: pa.Table, rows: np.ndarray, what: str) -> pa.Table:
    keys = training.select(["user_id", "event_timestamp"]).take(pa.array(rows))
    return keys.append_column("what", pa.repeat(pa.scalar(what), len(rows)))
