"""What DuckDB measures for a rule is what plain Python counts, whatever the rows; and what is shown breaks the rule."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import DAY, TABLES, Workspace

import data_quality.pathways
from data_quality import CRITICAL
from data_quality.checkpoint import validate_pathways
from data_quality.rules import examples, measure, never, unique, within

ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-2, 3)),
        st.one_of(st.none(), st.sampled_from(["a", "b"])),
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=3)),
    ),
    max_size=12,
)
SCHEMA = pa.schema([("n", pa.int64()), ("s", pa.string()), ("e", pa.list_(pa.float32()))])
NORM = """CASE WHEN list_count(e) = len(e)
    THEN list_inner_product(CAST(e AS DOUBLE[]), CAST(e AS DOUBLE[])) END"""
RULES = [
    never("n", "n < 0", "n is not negative", CRITICAL),
    never("n", "n IS NULL", "n is never missing", CRITICAL),
    never("e", "len(e) > 0 AND (norm IS NULL OR NOT isfinite(norm))", "no embedding is broken", CRITICAL),
    within("n", "avg(n)", "the mean", CRITICAL, low=0),
    within("s", "count(s) / count(*)", "the share", CRITICAL, low=0),
    unique(("n", "s"), "a pair stands there once", CRITICAL),
]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_measures_are_what_plain_python_counts(rows: list[tuple]) -> None:
    table = pa.Table.from_pylist([dict(zip(SCHEMA.names, row)) for row in rows], SCHEMA)
    numbers = [n for n, _, _ in rows if n is not None]
    broken = [e for _, _, e in rows if e and not all(x is not None and math.isfinite(x) for x in e)]
    expected = [
        sum(n < 0 for n in numbers),
        len(rows) - len(numbers),
        len(broken),
        sum(numbers) / len(numbers) if numbers else math.nan,
        sum(s is not None for _, s, _ in rows) / len(rows) if rows else math.nan,
        len(rows) - len({(n, s) for n, s, _ in rows}),
    ]
    with duckdb.connect() as con:
        con.register("given", table)
        query = f"SELECT *, {NORM} AS norm FROM given"
        (found,) = measure(con, query, RULES).itertuples(index=False)
        assert [*found] == pytest.approx(expected, nan_ok=True)
        shown = examples(con, query, RULES[0], ("s",), 3)
        assert len(shown) == min(3, expected[0]) and all(row["n"] < 0 and list(row) == ["s", "n"] for row in shown)
        twice = examples(con, query, RULES[5], (), 100)
        assert sum(row["times"] - 1 for row in twice) == expected[5]


def test_two_rules_of_one_name_are_a_bug() -> None:
    with duckdb.connect() as con, pytest.raises(AssertionError, match="one name"):
        measure(con, "SELECT 1 AS n", [RULES[0], RULES[0]])


def test_of_very_long_lists_every_kth_user_is_looked_up(
    copied: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown items of half the users or so are enough to see that a catalogue is the wrong one."""

    def lose_all(rows: list[dict]) -> list[dict]:
        return [row | {"seen_item_id": [999] * len(row["seen_item_id"])} for row in rows]

    def count(elements: int) -> int:
        monkeypatch.setattr(data_quality.pathways, "ELEMENTS", elements)
        tables = [table for table in TABLES if table.name == "user_seen"]
        result = validate_pathways(
            lake=copied.lake,
            features=copied.features,
            day=DAY,
            tables=tables,
            out=tmp_path / "out",
            progress=lambda text: None,
            docs=False,
        )
        (entry,) = [r for r in result["results"] if r["rule"] == "every item is in the items table"]
        return entry["unexpected_count"]

    copied.change("user_seen", lose_all)
    whole = count(10**9)
    assert whole > 100
    assert 0 < count(whole // 2) < whole
