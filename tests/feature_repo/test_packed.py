"""Packed rows: what goes in comes out, whatever the values; the bytes are narrow; another layout is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.packed import decode, encode

EDGES = [edge + step for bits in (7, 15, 31) for edge in (-(1 << bits), 1 << bits) for step in (-1, 0, 1)]
VALUES = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from([0, *EDGES]))
COLUMNS = st.dictionaries(st.text(max_size=20), st.none() | st.lists(VALUES, max_size=5), max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 50), COLUMNS)
def test_what_goes_in_comes_out(stamp_ms: int, columns: dict) -> None:
    arrays = {name: None if values is None else np.array(values, np.int64) for name, values in columns.items()}
    found_ms, found = decode(encode(stamp_ms, arrays))
    assert found_ms == stamp_ms
    assert {name: None if a is None else a.tolist() for name, a in found.items()} == columns
    assert all(a is None or (a.dtype == np.int64 and a.flags.owndata) for a in found.values())


@pytest.mark.parametrize(("value", "width"), [(127, 1), (-128, 1), (128, 2), (-129, 2), (1 << 15, 4), (1 << 31, 8)])
def test_a_column_is_as_narrow_as_its_values(value: int, width: int) -> None:
    one, two = (len(encode(0, {"a": np.full(count, value)})) for count in (1, 2))
    assert two - one == width


def test_another_layout_is_refused() -> None:
    row = encode(5, {"a": np.array([1])})
    with pytest.raises(ValueError, match="layout 9, this code reads 1: delete the online store"):
        decode(b"\x09" + row[1:])
