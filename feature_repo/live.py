"""Live events beside the tables: how pushed events of one user are joined, and how they are laid over the day's rows.

    short = over(table_ND, covered_ms, live_ND, SHORT_LEN)

An event counts as live from the end of the day that its user's newest table row covers. Before that the tables tell
what happened, whether or not it was pushed.

Legend: N events, D the fields of an event (contract.EVENT_FIELDS).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datasets.contract import EVENT_FIELDS
from feature_repo.views import LIVE_COLUMNS, LIVE_LEN

ITEM, TIME, LABEL = (EVENT_FIELDS.index(name) for name in ("item_id", "time_s", "label"))


def events_of(row: tuple[int, Mapping[str, np.ndarray | None]] | None) -> np.ndarray:
    """The events [n, 7] of a live row as the online store gives it, oldest first."""
    if row is None:
        return np.zeros((0, len(EVENT_FIELDS)), np.int64)
    columns = [row[1][column] for column in LIVE_COLUMNS]
    return np.stack([column for column in columns if column is not None], 1)


def merge(old_ND: np.ndarray, new_ND: np.ndarray) -> np.ndarray:
    """Both sets of events as one, oldest first, at most LIVE_LEN: feedback on the same item and second is joined.

    Labels add up, play time is the longest, of the other fields the greatest (unknown is -1). The result does not
    depend on the order of arrival.
    """
    both_ND = np.concatenate([old_ND, new_ND])
    order = np.lexsort((both_ND[:, ITEM], both_ND[:, TIME]))
    both_ND = both_ND[order]
    key = both_ND[:, [TIME, ITEM]]
    first = np.flatnonzero(np.concatenate([[True], (key[1:] != key[:-1]).any(1)])) if len(key) else np.zeros(0, np.intp)
    merged_ND = np.maximum.reduceat(both_ND, first, axis=0) if len(first) else both_ND
    if len(first):
        merged_ND[:, LABEL] = np.bitwise_or.reduceat(both_ND[:, LABEL], first)
    return merged_ND[-LIVE_LEN:]


def over(table_ND: np.ndarray, covered_ms: int, live_ND: np.ndarray, longest: int) -> np.ndarray:
    """A short-term pathway [n, 7] with the live events behind it, at most `longest`, oldest first.

    `covered_ms`: the time stamp of the tables' row, 0 without one. Events before it are the tables' to tell.
    """
    return np.concatenate([table_ND, since(live_ND, covered_ms)])[-longest:]


def since(live_ND: np.ndarray, covered_ms: int) -> np.ndarray:
    """The live events at or after the end of what the tables cover. A table's time stamp is the end of its day."""
    return live_ND[live_ND[:, TIME] * 1000 >= covered_ms]
