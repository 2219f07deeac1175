"""Days in pieces: nothing is lost, nothing is seen before it was shown, and a short day stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.quality.pieces import SHORT, in_pieces, regroup, regrouped
from models.onerec.features import EVENT_FIELDS, POSITIVE_MASK
from models.training.data import PATHWAYS, read_ragged

LONG_VIEW = 2
assert LONG_VIEW & POSITIVE_MASK
CHANGED = [f"{name}_{field}" for name in ("lifelong", "short") for field in EVENT_FIELDS]  # by a longer short history


def _table(days: list[list[tuple[int, int]]], past: int) -> pa.Table:
    """Rows of one user each: `past` events behind them, and a day of (item, label)."""
    columns: dict[str, list] = {
        "user_id": list(range(len(days))),
        "event_timestamp": [10_000 + i for i in range(len(days))],
        "static_codes": [[i] for i in range(len(days))],
    }
    lengths = {"lifelong": max(0, past - 3), "short": min(past, 3), "positive": 1}
    for name in PATHWAYS:
        for field in EVENT_FIELDS:
            # Item 7 has author 70 and tag 700 wherever it stands.
            value = {"item_id": 7, "author_id": 70, "tag": 700, "label": LONG_VIEW, "duration_ms": 9}.get(field, 5)
            columns[f"{name}_{field}"] = [[value] * lengths[name]] * len(days)
    columns["item_id"] = [[item for item, _ in day] for day in days]
    columns["label"] = [[label for _, label in day] for day in days]
    return pa.table(columns)


def test_each_piece_sees_what_was_shown_before_it_and_nothing_else() -> None:
    day = [(7, 0), (8, LONG_VIEW), (9, 0), (7, LONG_VIEW), (11, 0), (12, 0), (13, LONG_VIEW)]
    made = in_pieces(_table([day, day[:1], []], past=5), size=3, short=4)
    assert made["user_id"].to_pylist() == [0, 0, 1, 2]
    assert made["item_id"].to_pylist() == [[7, 8, 9], [7, 11, 12, 13], [7], []]
    assert made["label"].to_pylist()[:2] == [[0, 2, 0], [2, 0, 0, 2]]
    assert made["short_item_id"].to_pylist() == [[7] * 4, [7, 7, 8, 9], [7] * 4, [7] * 4]
    assert made["lifelong_item_id"].to_pylist()[:2] == [[7], [7] * 4]
    assert made["positive_item_id"].to_pylist() == [[7], [7, 8], [7], [7]]
    assert made["static_codes"].to_pylist() == [[0], [0], [1], [2]]


def test_an_item_that_histories_hold_brings_its_traits_and_another_is_unknown() -> None:
    made = in_pieces(_table([[(7, 0), (8, 1), (9, 0), (9, 0)]], past=0), size=2, short=4)
    short = read_ragged(made, [f"short_{field}" for field in EVENT_FIELDS])
    of = dict(zip(EVENT_FIELDS, short.row(1).T.tolist()))
    assert of["item_id"] == [7, 8] and of["label"] == [0, 1]
    assert of["author_id"] == [70, -1] and of["tag"] == [700, -1] and of["duration_ms"] == [9, -1]
    assert of["time_s"] == [0, 0] and of["play_ms"] == [-1, -1]


def test_all_impressions_are_there_once_and_the_newest_events_are_kept() -> None:
    rng = np.random.default_rng(0)
    days = [[(int(i), 0) for i in rng.integers(1, 99, n)] for n in rng.integers(0, 30, 50)]
    made = in_pieces(_table(days, past=40), size=4, short=20, longest=16)
    kept = [item for items in made["item_id"].to_pylist() for item in items]
    assert kept == [item for day in days for item, _ in day]
    lengths = [max(len(x) for x in made[f"{name}_item_id"].to_pylist()) for name in ("short", "lifelong")]
    assert lengths == [20, 16]


def test_a_longer_short_history_takes_the_newest_of_the_lifelong_one(tmp_path: Path) -> None:
    table = _table([[(7, 0)], [(8, 0)]], past=0)
    order = {"lifelong": [[1, 2, 3, 4], []], "short": [[5, 6], [9]]}
    for name, values in order.items():
        for field in EVENT_FIELDS:
            at = table.column_names.index(f"{name}_{field}")
            table = table.set_column(at, f"{name}_{field}", pa.array(values, pa.list_(pa.int64())))
    made = regroup(table, 4)
    assert made["short_item_id"].to_pylist() == [[3, 4, 5, 6], [9]]
    assert made["lifelong_label"].to_pylist() == [[1, 2], []]
    assert made.column_names == table.column_names
    assert made.drop_columns(CHANGED).equals(table.drop_columns(CHANGED))
    assert regroup(table, SHORT) is table
    path = tmp_path / "dt=2022-05-05.parquet"
    pq.write_table(table, path)
    assert regrouped(path, SHORT) == path
    first, again = regrouped(path, 4), regrouped(path, 4)
    assert first == again != path and list(tmp_path.rglob("*.part*")) == []
    assert pq.read_table(first)["short_item_id"].to_pylist() == made["short_item_id"].to_pylist()
