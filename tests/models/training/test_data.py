"""Training sets: ragged gathers against loops, targets, context windows, batches that cover every row once."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue, encode_events
from models.training.data import Ragged, TrainingSet, read_ragged
from tests.models.conftest import CLICK, FIRST_DAY_S, LIKE, LONG_VIEW, Row, write_training_set

CONFIG = OneRecConfig(
    codebook_size=4, items=4, static_features=3, short_len=2, positive_len=3, lifelong_len=4, d_model=8, heads=2
)
CATALOGUE = Catalogue(np.array([30, 0, 10, 20]))


def _event(item: int, age_s: int = 60) -> list[int]:
    return [item, 5, 6, FIRST_DAY_S - age_s, 500, 1000, LIKE]


def _load(tmp_path, rows: list[Row]) -> TrainingSet:
    return TrainingSet([write_training_set(tmp_path / "a.parquet", rows)], CATALOGUE, CONFIG)


@settings(max_examples=50, deadline=None)
@given(
    lists=st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=6),
    longest=st.integers(1, 8),
    width=st.sampled_from([None, 3]),
    data=st.data(),
)
def test_right_aligned_equals_a_loop(lists, longest, width, data):
    flat = np.array([x for row in lists for x in row], np.int64)
    values = flat if width is None else flat[:, None] * np.arange(1, width + 1)
    ragged = Ragged(values, np.cumsum([0, *(len(row) for row in lists)]))
    rows = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)), np.int64)
    got, mask = ragged.right_aligned(rows, longest)
    kept = [lists[r][-longest:] for r in rows]
    L = max((len(row) for row in kept), default=0)
    assert mask.tolist() == [[False] * (L - len(row)) + [True] * len(row) for row in kept]
    expected = np.array([[0] * (L - len(row)) + row for row in kept], np.int64).reshape(len(rows), L)
    assert np.array_equal(got, expected if width is None else expected[..., None] * np.arange(1, width + 1))
    assert [ragged.row(i).tolist() for i in range(len(lists))] == [values[a:b].tolist() for a, b in _spans(lists)]
    assert ragged.lengths.tolist() == [len(row) for row in lists]


def _spans(lists: list[list[int]]) -> list[tuple[int, int]]:
    end = np.cumsum([0, *(len(row) for row in lists)])
    return list(itertools.pairwise(end))


def test_read_ragged_takes_nulls_as_empty_and_refuses_lists_of_different_length():
    table = pa.table({"a": [[1, 2], None, [3]], "b": [[4, 5], [], [6]], "c": [[4], [], [6]]})
    ragged = read_ragged(table, ["a", "b"])
    assert ragged.values.tolist() == [[1, 4], [2, 5], [3, 6]] and ragged.offsets.tolist() == [0, 2, 2, 3]
    with pytest.raises(ValueError, match="columns a and c have lists of different length"):
        read_ragged(table, ["a", "c"])


def test_targets_are_the_known_positives_each_once_in_order_of_showing(tmp_path):
    shown = [
        [20, CLICK, 255, 1, 1],  # no positive
        [10, LONG_VIEW, 255, 1, 1],
        [0, LIKE, 255, 1, 1],
        [77, LIKE, 255, 1, 1],  # not in the catalogue
        [10, LIKE, 255, 1, 1],  # again
        [30, LIKE | CLICK, 255, 1, 1],
    ]
    data = _load(tmp_path, [Row(1, shown=shown), Row(2, shown=shown[:1]), Row(3, shown=shown[1:2])])
    assert [data.targets.row(i).tolist() for i in range(3)] == [[2, 1, 0], [], [2]]
    batch = data.batch(np.array([0, 2, 1]), max_targets=2)
    assert batch["targets"].tolist() == [[1, 0], [0, 2], [0, 0]]  # the newest two
    assert batch["target_mask"].tolist() == [[True, True], [False, True], [False, False]]
    assert "others" not in batch
    batch = data.batch(np.array([0, 2, 1]), max_targets=2, max_others=3)
    assert batch["others"].tolist() == [[3], [0], [3]] and batch["other_mask"].tolist() == [[True], [False], [True]]


def test_context_holds_the_newest_events_as_of_the_row(tmp_path):
    events = [_event(10, 300), _event(0, 200), _event(99, 100)]
    later = FIRST_DAY_S + 3600
    rows = [Row(1, short=events, positive=events[:1]), Row(2, now_s=later, short=events[:1], lifelong=events * 2)]
    data = _load(tmp_path, rows)
    batch = data.context(np.array([1, 0]))
    assert batch["static"].tolist() == [[1, 2, 3]] * 2
    assert batch["short_mask"].tolist() == [[False, True], [True, True]]
    assert batch["positive_mask"].tolist() == [[False], [True]]
    assert batch["lifelong_mask"].tolist() == [[True] * 4, [False] * 4]

    def encoded(raw: list[list[int]], now: int) -> list[list[int]]:
        return encode_events(np.array(raw), np.full(len(raw), now), CATALOGUE, 8192, 512).tolist()

    assert batch["short"][1].tolist() == encoded(events[-2:], FIRST_DAY_S)
    assert batch["short"][0, 1:].tolist() == encoded(events[:1], later)
    assert batch["lifelong"][0].tolist() == encoded((events * 2)[-4:], later)
    assert batch["short"][1, 1, 0] == len(CATALOGUE)  # item 99 is unknown


def test_paths_are_read_in_day_order(tmp_path):
    paths = [write_training_set(tmp_path / f"dt={d}" / "p.parquet", [Row(u)]) for d, u in (("b", 2), ("a", 1))]
    assert TrainingSet(paths, CATALOGUE, CONFIG).user_id.tolist() == [1, 2]


def test_refuses_no_rows_and_a_changed_users_table(tmp_path):
    with pytest.raises(ValueError, match=r"no training rows in .*a\.parquet"):
        _load(tmp_path, [])
    with pytest.raises(ValueError, match=r"static_codes has \[2, 3\] entries, the model wants 3"):
        _load(tmp_path, [Row(1), Row(2, static=(1, 2))])


def test_batches_cover_each_row_once_seeded_and_of_similar_length(tmp_path):
    rng = np.random.default_rng(0)
    rows = [Row(u, short=[_event(0)] * int(n)) for u, n in enumerate(rng.integers(0, 9, 700))]
    data = _load(tmp_path, rows)
    chosen = rng.permutation(700)[:611]
    batches = list(data.batches(chosen, 8, seed=1))
    assert sorted(np.concatenate(batches).tolist()) == sorted(chosen.tolist())
    assert max(map(len, batches)) == 8
    again = list(data.batches(chosen, 8, seed=1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again))
    other = list(data.batches(chosen, 8, seed=2))
    assert [b.tolist() for b in other] != [b.tolist() for b in batches]
    lengths = data.pathway["short"].lengths
    within = np.mean([np.ptp(lengths[b]) for b in batches])
    assert within < 0.3 * np.ptp(lengths)
    first = [lengths[b].mean() for b in batches]
    assert first != sorted(first)  # batches of long and short users alternate
    assert list(data.batches(np.empty(0, np.int64), 8, seed=1)) == [] or len(next(data.batches(chosen[:0], 8, 1))) == 0


def test_columns_of_the_world_are_read(world):
    """The fixture writes what the contract says; a wrong name would raise here first."""
    names = set(pq.read_schema(world.training[0]).names)
    assert {"user_id", "event_timestamp", "static_codes", "seen_item_id", "item_id", "label", "label_known"} <= names
    assert {f"{v}_{f}" for v in ("short", "positive", "lifelong") for f in ("item_id", "time_s", "label")} <= names


def test_events_encoded_in_threads_are_the_same(tmp_path, monkeypatch):
    history = [_event(item, 60 * i) for i, item in enumerate((30, 0, 99, 10, 20))]
    rows = [Row(user, short=history[:2], positive=history[1:4], lifelong=history) for user in range(3)]
    whole = _load(tmp_path, rows)
    monkeypatch.setattr("models.training.data.EVENTS_A_THREAD", 2)
    parts = _load(tmp_path, rows)
    for name, ragged in whole.pathway.items():
        assert len(ragged.values) > 2 and np.array_equal(ragged.values, parts.pathway[name].values)
