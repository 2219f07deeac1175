"""Days of many impressions in pieces: after each piece, what it held is history of the next.

    table = in_pieces(table, size=4)         # rows of training sets, at most about four impressions each

KuaiRand-Pure gives the 50 impressions before its log without their times, and the pipeline spreads them over 3 days:
rows of ten impressions with coarse contexts, where a sequence model has a context for each. A row's context stays as
the features step made it; only what the day itself showed before the piece is added, with the traits that histories
hold of these items, and with the clock and play time unknown, as they are there.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.onerec.features import EVENT_FIELDS, NUM_FIELDS, POSITIVE_MASK
from models.training.data import PATHWAYS, read_ragged

FIELD = {name: i for i, name in enumerate(EVENT_FIELDS)}
TRAITS = ("author_id", "tag", "duration_ms")  # of an item, whoever was shown it
UNKNOWN = -1
SHORT = 20  # events of the short history as the features step makes it


def in_pieces(table: pa.Table, size: int, short: int = SHORT, longest: int = 256) -> pa.Table:
    """The rows of a training set with days of more than `size` impressions cut into pieces of about that many.

    short: length of the short history; older events move on to the lifelong one. Of that and of the positive history
    the newest `longest` events are kept.
    """
    events = {name: read_ragged(table, [f"{name}_{field}" for field in EVENT_FIELDS]) for name in PATHWAYS}
    shown = read_ragged(table, ["item_id", "label"])
    day = _as_events(shown.values, np.concatenate([e.values for e in events.values()]))
    rows: list[int] = []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*PATHWAYS, "shown")}
    for row, (first, last) in enumerate(zip(shown.offsets, shown.offsets[1:])):
        own, before = day[first:last], len(events["lifelong"].row(row)) + len(events["short"].row(row))
        line = np.concatenate([events["lifelong"].row(row), events["short"].row(row), own])
        liked = (own[:, FIELD["label"]] & POSITIVE_MASK) > 0
        pieces = max(1, round(len(own) / size))
        for piece in range(pieces):
            begin, end = len(own) * piece // pieces, len(own) * (piece + 1) // pieces
            middle = max(0, before + begin - short)
            parts["lifelong"].append(line[max(0, middle - longest) : middle])
            parts["short"].append(line[middle : before + begin])
            positive = np.concatenate([events["positive"].row(row), own[:begin][liked[:begin]]])
            parts["positive"].append(positive[-longest:])
            parts["shown"].append(shown.values[first + begin : first + end])
            rows.append(row)
    columns = {name: table[name].take(pa.array(rows)) for name in ("user_id", "event_timestamp", "static_codes")}
    for name in PATHWAYS:
        columns |= {f"{name}_{field}": c for field, c in zip(EVENT_FIELDS, _lists(parts[name]))}
    return pa.table(columns | dict(zip(("item_id", "label"), _lists(parts["shown"]))))


def regroup(table: pa.Table, short: int) -> pa.Table:
    """The rows with a short history of up to `short` events: what it lacks are the newest of the lifelong one."""
    if short == SHORT:
        return table
    names = {name: [f"{name}_{field}" for field in EVENT_FIELDS] for name in ("lifelong", "short")}
    events = {name: read_ragged(table, columns) for name, columns in names.items()}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in events}
    for row in range(len(table)):
        line = np.concatenate([events["lifelong"].row(row), events["short"].row(row)])
        middle = max(0, len(line) - short)
        parts["lifelong"].append(line[:middle])
        parts["short"].append(line[middle:])
    for name, columns in names.items():
        for column, values in zip(columns, _lists(parts[name])):
            at = table.column_names.index(column)
            table = table.set_column(at, column, values.cast(table.schema.field(column).type))
    return table


def regrouped(path: Path, short: int) -> Path:
    """A Parquet file of rows after `regroup`, in a folder beside them; what is there is not made again."""
    made = path.parent / f"short_{short}" / path.name
    if short == SHORT or made.exists():
        return path if short == SHORT else made
    made.parent.mkdir(exist_ok=True)
    staged = made.with_suffix(f".part{os.getpid()}")
    pq.write_table(regroup(pq.read_table(path), short), staged)
    os.replace(staged, made)
    return made


def _as_events(shown_N2: np.ndarray, known_M7: np.ndarray) -> np.ndarray:
    """Impressions (item, label) as events of a history [N, 7]; traits as of any event of the item, or unknown."""
    item, at = np.unique(known_M7[:, FIELD["item_id"]], return_index=True)
    out = np.full((len(shown_N2), NUM_FIELDS), UNKNOWN, np.int64)
    out[:, FIELD["item_id"]], out[:, FIELD["label"]] = shown_N2.T
    out[:, FIELD["time_s"]] = 0
    if len(item):
        place = np.minimum(np.searchsorted(item, shown_N2[:, 0]), len(item) - 1)
        known = item[place] == shown_N2[:, 0]
        for name in TRAITS:
            out[known, FIELD[name]] = known_M7[at[place[known]], FIELD[name]]
    return out


def _lists(parts: list[np.ndarray]) -> list[pa.Array]:
    """Arrays [n, C] of each row as C list columns."""
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
    values = np.concatenate(parts)
    return [pa.LargeListArray.from_arrays(offsets, np.ascontiguousarray(values[:, c])) for c in range(values.shape[1])]
