"""Good data passes every suite; each kind of bad data fails, for its own reason and no other."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_quality.checkpoint import require, validate
from datasets.contract import LABELS, POSITIVE_LABELS
from datasets.errors import DataError

DAY = "2025-01-03"
DAYS = ["2025-01-01", "2025-01-02", DAY]
Rows = list[dict[str, Any]]


def check(lake: Path, out: Path, days: list[str] | None = None) -> dict:
    return validate(lake=lake, day=DAY, days=days or [DAY], out=out, progress=lambda text: None)


def failures(result: dict) -> set[tuple[str, str, str]]:
    return {(r["severity"], r["table"], r["rule"]) for r in result["results"] if not r["success"]}


def first(**values: Any) -> Callable[[Rows], Rows]:
    """Change the first row."""
    return lambda rows: [rows[0] | values, *rows[1:]]


def every(**values: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [row | values for row in rows]


def plus_first(rows: Rows) -> Rows:
    return [*rows, rows[0]]


def same(rows: Rows) -> Rows:
    return rows


def without(name: str) -> Callable[[pa.Schema], pa.Schema]:
    return lambda schema: pa.schema([field for field in schema if field.name != name])


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Schema], pa.Schema]:
    return lambda schema: schema.set(schema.get_field_index(name), pa.field(name, kind))


def late(rows: Rows) -> Rows:
    return [rows[0] | {"event_time": rows[0]["event_time"] + timedelta(days=2)}, *rows[1:]]


def doubled(rows: Rows) -> Rows:
    later = [row | {"event_time": row["event_time"] + timedelta(milliseconds=1)} for row in rows]
    return [*rows, *later, *(row | {"event_time": row["event_time"] + timedelta(milliseconds=2)} for row in rows)]


def half_without(name: str) -> Callable[[Rows], Rows]:
    return lambda rows: [row | ({name: None} if number % 2 else {}) for number, row in enumerate(rows)]


C, W = "critical", "warning"
# name: (table, what changes it, what fails)
BAD: dict[str, tuple[str, dict[str, Any], set[tuple[str, str, str]]]] = {
    "column missing": (
        "impressions",
        {"change": same, "schema": without("is_hate")},
        {(C, "schema", "the file has the contract's columns")},
    ),
    "column of another type": (
        "impressions",
        {"change": same, "schema": retyped("play_time_ms", pa.float64())},
        {(C, "schema", "the file has the contract's columns")},
    ),
    "user feature of another type": (
        "users",
        {"change": every(device=1.5), "schema": retyped("device", pa.float64())},
        {(C, "schema", "the file has the contract's columns")},
    ),
    "no user": (
        "impressions",
        {"change": first(user_id=None)},
        {(C, "impressions", "user_id is never missing"), (C, "impressions", "every user is in the users table")},
    ),
    "event twice": ("impressions", {"change": plus_first}, {(C, "impressions", "an event stands there once")}),
    "unknown item": (
        "impressions",
        {"change": first(item_id=999)},
        {(C, "impressions", "every item is in the items table")},
    ),
    "unknown user": (
        "impressions",
        {"change": first(user_id=999)},
        {(C, "impressions", "every user is in the users table")},
    ),
    "label of 2": ("impressions", {"change": first(is_like=2)}, {(C, "impressions", "is_like is 0 or 1")}),
    "negative play time": (
        "impressions",
        {"change": first(play_time_ms=-1)},
        {(C, "impressions", "play_time_ms is not negative")},
    ),
    "play of 200 durations": (
        "impressions",
        {"change": first(play_time_ms=2_000_000, duration_ms=10_000)},
        {(C, "impressions", "the play time is at most 100 durations")},
    ),
    "duration of zero": (
        "impressions",
        {"change": first(duration_ms=0)},
        {(C, "impressions", "a known duration is positive")},
    ),
    "time two days later": (
        "impressions",
        {"change": late},
        {(C, "impressions", "the time lies in the log day, give or take the tolerance")},
    ),
    "negative position": (
        "impressions",
        {"change": first(position=-1)},
        {(C, "impressions", "position is not negative")},
    ),
    "play times lost": (
        "impressions",
        {"change": half_without("play_time_ms")},
        {(W, "impressions", "the play time is mostly known")},
    ),
    "no positives": (
        "impressions",
        {"change": every(**dict.fromkeys(POSITIVE_LABELS, 0))},
        {
            (C, "impressions", "there are positives, and not everything is one"),
            (W, "impressions", "the rate of is_long_view is like that of the days before"),
        },
    ),
    "no signal at all": (
        "impressions",
        {"change": every(**dict.fromkeys(LABELS))},
        {
            (C, "impressions", "a positive signal is observed"),
            (C, "impressions", "there are positives, and not everything is one"),
            *((C, "impressions", f"{n} is observed as often as in the days before") for n in POSITIVE_LABELS),
            *(
                (W, "impressions", f"{n} is observed as often as in the days before")
                for n in LABELS
                if n not in POSITIVE_LABELS
            ),
            *(
                (W, "impressions", f"the rate of {n} is like that of the days before")
                for n in ("is_click", "is_long_view")
            ),
        },
    ),
    "one signal half lost": (
        "impressions",
        {"change": half_without("is_forward")},
        {(C, "impressions", "is_forward is observed as often as in the days before")},
    ),
    "nobody clicks": (
        "impressions",
        {"change": every(is_click=0)},
        {(W, "impressions", "the rate of is_click is like that of the days before")},
    ),
    "three times the rows": (
        "impressions",
        {"change": doubled},
        {(W, "impressions", "as many rows as in the days before")},
    ),
    "a day cut off": (
        "impressions",
        {"change": lambda rows: rows[:20]},
        {(W, "impressions", "as many rows as in the days before"), (C, "impressions", "the day is not cut off")},
    ),
    "many rows quarantined": (
        "impressions",
        {"change": same, "counts": {"no_id": 150}},
        {(C, "intake", "quarantined rows are at most 20 %"), (W, "intake", "quarantined rows are at most 1 %")},
    ),
    "many duplicates": (
        "impressions",
        {"change": same, "counts": {"duplicates": 80}},
        {(W, "intake", "exact duplicates are at most 10 %")},
    ),
    "item twice": ("items", {"change": plus_first}, {(C, "items", "an item stands there once")}),
    "author of -2": (
        "items",
        {"change": first(author_id=-2)},
        {(C, "items", "author_id is an id, or -1 for unknown")},
    ),
    "unknown authors": ("items", {"change": every(author_id=-1)}, {(W, "items", "most items have a known author")}),
    "items without content": (
        "items",
        {"change": every(tags=[], caption=None)},
        {(W, "items", "most items have a tag, a text or an embedding")},
    ),
    "item from the future": (
        "items",
        {"change": lambda rows: [rows[0] | {"upload_time": rows[0]["upload_time"] + timedelta(days=90)}, *rows[1:]]},
        {(W, "items", "no item is uploaded after the day")},
    ),
    "user twice": ("users", {"change": plus_first}, {(C, "users", "a user stands there once")}),
    "feature lost": ("users", {"change": every(device=None)}, {(W, "users", "device is known for some users")}),
}


def test_good_data_passes_every_suite(lake: Path, tmp_path: Path) -> None:
    result = check(lake, tmp_path, DAYS)
    assert failures(result) == set()
    assert (result["critical_failed"], result["warning_failed"]) == (0, 0)
    tables = {(r["table"], r["day"]) for r in result["results"]}
    assert tables == {("impressions", day) for day in DAYS} | {
        (table, DAY) for table in ("schema", "intake", "items", "users")
    }
    require(result)


@pytest.mark.parametrize("name", BAD)
def test_bad_data_fails_for_its_own_reason(name: str, changed: Callable[..., Path], tmp_path: Path) -> None:
    table, how, reasons = BAD[name]
    result = check(changed(table, **how), tmp_path / "out")
    assert failures(result) == reasons
    assert result["critical_failed"] == sum(severity == C for severity, _, _ in reasons)
    assert result["warning_failed"] == sum(severity == W for severity, _, _ in reasons)
    if result["critical_failed"]:
        with pytest.raises(ValueError, match="critical expectation") as caught:
            require(result)
        assert all(rule in str(caught.value) for severity, _, rule in reasons if severity == C)
    else:
        require(result)


def test_a_failure_shows_the_offending_rows(changed: Callable[..., Path], tmp_path: Path) -> None:
    result = check(changed("impressions", first(item_id=999)), tmp_path / "out")
    (entry,) = [r for r in result["results"] if not r["success"]]
    assert entry["unexpected_count"] == 1
    assert entry["example"][0]["item_id"] == 999
    assert set(entry["example"][0]) >= {"user_id", "item_id", "event_time"}
    with pytest.raises(ValueError, match=r"impressions 2025-01-03: .* 1 rows, such as \{.*'item_id': 999"):
        require(result)


def test_results_and_docs_are_written(lake: Path, tmp_path: Path) -> None:
    result = check(lake, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert "impressions-2025-01-03" in (tmp_path / "docs" / "index.html").read_text()
    again = check(lake, tmp_path)
    assert again == result


def test_a_missing_partition_is_named(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no partition impressions/dt=2024-12-31 .*run the ingest"):
        check(lake, tmp_path, ["2024-12-31", DAY])


def test_an_expectation_that_cannot_be_computed_is_critical(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import great_expectations.expectations as gxe

    from data_quality import WARNING, users

    broken = gxe.ExpectColumnValuesToNotBeNull(column="no such column", notes="a bug", severity=WARNING)
    monkeypatch.setattr(users, "suite", lambda features: [broken])
    result = check(lake, tmp_path)
    (entry,) = [r for r in result["results"] if r["table"] == "users"]
    assert (entry["success"], entry["severity"]) == (False, "critical")
    assert "no such column" in entry["observed"]


def test_nothing_is_sent_over_the_network(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: called.append(address))
    check(lake, tmp_path)
    assert called == []
    assert os.environ["GX_ANALYTICS_ENABLED"] == "False"
