"""Unique IDs: no duplicates, given IDs stay, minimal cost within a prefix, and what happens when a prefix is full."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tokenizer import unique as unique_module
from models.tokenizer.unique import unique_codes


def _books(k: int, levels: int, dim: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(size=(k, dim)) * 4.0**-level for level in range(levels)]


def _encode(x: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    codes, residual = [], x.copy()
    for book in books:
        code = np.square(residual[:, None] - book[None]).sum(-1).argmin(1)
        codes.append(code)
        residual -= book[code]
    return np.stack(codes, 1)


def _cost(codes: np.ndarray, x: np.ndarray, books: list[np.ndarray]) -> float:
    rebuilt = sum(book[codes[:, level]] for level, book in enumerate(books))
    return float(np.square(x - rebuilt).sum())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), items=st.integers(0, 20), given_items=st.integers(0, 7))
def test_no_duplicates_and_nearest_codes_stay_where_they_are_free(seed, items, given_items):
    rng = np.random.default_rng(seed)
    books = _books(3, 3, 2, rng)  # 27 tuples for up to 27 items
    x = rng.normal(size=(items, 2))
    flat = rng.choice(27, given_items, replace=False)
    taken = np.stack([flat // 9, flat // 3 % 3, flat % 3], 1)
    nearest = _encode(x, books)
    unique = unique_codes(nearest, x, books, taken)
    assert unique.shape == nearest.shape
    assert unique.min(initial=0) >= 0 and unique.max(initial=0) < 3
    assert len({tuple(r) for r in np.concatenate([taken, unique]).tolist()}) == items + given_items
    if len({tuple(r) for r in np.concatenate([taken, nearest]).tolist()}) == items + given_items:
        assert np.array_equal(unique, nearest)


def test_inputs_are_not_changed():
    rng = np.random.default_rng(0)
    books, x = _books(3, 3, 2, rng), rng.normal(size=(8, 2))
    nearest, taken = _encode(x, books), np.array([[0, 0, 0], [1, 1, 1]])
    copies = nearest.copy(), x.copy(), taken.copy()
    unique_codes(nearest, x, books, taken)
    assert all(np.array_equal(a, b) for a, b in zip((nearest, x, taken), copies))


@pytest.mark.parametrize("seed", range(5))
def test_cost_within_a_prefix_is_the_least_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    books = _books(6, 3, 3, rng)
    x = books[0][2] + books[1][4] + rng.normal(size=(4, 3)) * 0.05
    nearest = np.array([[2, 4, 1]] * 4)
    taken = np.array([[2, 4, 0], [5, 5, 5]])
    unique = unique_codes(nearest, x, books, taken)
    assert (unique[:, :2] == [2, 4]).all()
    options = itertools.permutations([1, 2, 3, 4, 5], 4)
    best = min(_cost(np.array([[2, 4, c] for c in option]), x, books) for option in options)
    assert _cost(unique, x, books) == pytest.approx(best, rel=1e-12)


def test_a_full_prefix_sends_the_worst_placed_to_the_nearest_prefix_with_room():
    books = [np.array([[0.0], [10.0], [100.0]]), np.array([[0.0], [3.0], [6.0]]), np.array([[0.0], [1.0], [2.0]])]
    taken = np.array([[0, 0, 0], [0, 0, 1]])  # one last code is left under (0, 0)
    x = np.array([[1.9], [2.4]])
    unique = unique_codes(np.array([[0, 0, 2], [0, 0, 2]]), x, books, taken)
    # 1.9 stays (distance 0.1); 2.4 costs more at 2 and goes to the neighbour 3 + 0.
    assert unique.tolist() == [[0, 0, 2], [0, 1, 0]]


def test_items_that_overflow_one_after_the_other_take_what_is_then_nearest():
    """Against a list of all tuples: the prefix nearest level by level that has room, then its nearest free code."""
    rng = np.random.default_rng(3)
    books = _books(4, 3, 2, rng)
    x = books[0][1] + books[1][2] + rng.normal(size=(50, 2)) * 0.01
    unique = unique_codes(np.array([[1, 2, 3]] * 50), x, books)
    at_home = (unique[:, :2] == [1, 2]).all(1)
    assert at_home.sum() == 4
    left = set(itertools.product(range(4), repeat=3)) - {tuple(row) for row in unique[at_home].tolist()}
    for i in np.flatnonzero(~at_home):
        residual, candidates = x[i], left
        for level in range(3):
            possible = sorted({codes[level] for codes in candidates})
            code = possible[int(np.square(residual - books[level][possible]).sum(1).argmin())]
            residual, candidates = residual - books[level][code], {c for c in candidates if c[level] == code}
        assert candidates == {tuple(unique[i].tolist())}
        left = left - candidates


def test_many_items_under_one_prefix_do_not_need_memory_for_every_pair_and_dimension():
    rng = np.random.default_rng(0)
    books = _books(300, 3, 64, rng)
    x = books[0][0] + books[1][0] + rng.normal(size=(300, 64)) * 0.01
    tracemalloc.start()
    unique = unique_codes(np.zeros((300, 3), np.int64), x, books)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(unique[:, 2])) == 300
    assert peak < 300 * 300 * 64 * 8 / 4


def test_overflow_leaves_a_first_level_code_only_when_all_its_prefixes_are_full():
    books = [np.array([[0.0], [10.0]]), np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]])]
    taken = np.array([[0, a, b] for a in range(2) for b in range(2)])
    unique = unique_codes(np.array([[0, 0, 0]]), np.array([[0.0]]), books, taken)
    assert unique.tolist() == [[1, 0, 0]]


def test_a_full_code_space_is_refused_with_its_size_and_a_last_free_code_is_found():
    rng = np.random.default_rng(0)
    books = _books(2, 3, 2, rng)
    taken = np.array(list(itertools.product(range(2), repeat=3)))
    x = rng.normal(size=(1, 2))
    with pytest.raises(ValueError, match=r"9 items do not fit into 2\^3"):
        unique_codes(_encode(x, books), x, books, taken)
    for hole in range(8):
        unique = unique_codes(_encode(x, books), x, books, np.delete(taken, hole, 0))
        assert unique.tolist() == [taken[hole].tolist()]


@pytest.mark.parametrize("items", [5, 40])
def test_a_large_prefix_is_filled_greedily_nearest_first(monkeypatch, items):
    """Above EXACT items; with 40 items for 12 codes the rest moves on, and no ID is given twice."""
    monkeypatch.setattr(unique_module, "EXACT", 4)
    rng = np.random.default_rng(1)
    books = _books(12, 3, 3, rng)
    x = books[0][2] + books[1][4] + rng.normal(size=(items, 3)) * 0.2
    nearest = np.array([[2, 4, 0]] * items)
    unique = unique_codes(nearest, x, books)
    cost = np.square((x - books[0][2] - books[1][4])[:, None] - books[2]).sum(-1)
    free, wanted = set(range(12)), {}
    for i in np.argsort(cost.min(1), kind="stable")[:12]:
        wanted[int(i)] = min(free, key=lambda c: cost[i, c])
        free.remove(wanted[int(i)])
    at_home = {i: row[2] for i, row in enumerate(unique.tolist()) if row[:2] == [2, 4]}
    assert at_home == wanted
    assert len(np.unique(unique, axis=0)) == items


def test_many_small_groups_are_each_solved_exactly(monkeypatch):
    """Several blocks of distances; every group against all permutations of all codes."""
    monkeypatch.setattr(unique_module, "DISTANCES", 30)
    rng = np.random.default_rng(2)
    books = _books(5, 3, 2, rng)
    x = rng.normal(size=(60, 2))
    nearest = _encode(x, books)
    unique = unique_codes(nearest, x, books)
    for prefix in np.unique(nearest[:, :2], axis=0):
        rows = np.flatnonzero((nearest[:, :2] == prefix).all(1))
        if len(rows) > 5:
            continue
        assert (unique[rows, :2] == prefix).all()
        options = itertools.permutations(range(5), len(rows))
        best = min(_cost(np.array([[*prefix, c] for c in option]), x[rows], books) for option in options)
        assert _cost(unique[rows], x[rows], books) == pytest.approx(best, rel=1e-9)
