"""Good data passes every suite; each kind of bad data of the zoo fails, for its own reason and no other."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from zoo import DAY, TABLES, ZOO, C, Kind, W, Workspace, first, forget_the_timezone

from data_quality.checkpoint import require, validate, validate_pathways
from datasets.errors import DataError

DAYS = ["2025-01-01", "2025-01-02", DAY]


def check(lake: Path, out: Path, days: list[str] | None = None, docs: bool = False) -> dict:
    return validate(lake=lake, day=DAY, days=days or [DAY], out=out, progress=lambda text: None, docs=docs)


def check_pathways(w: Workspace, out: Path, names: set[str] | None = None) -> dict:
    """names: of the tables to look at; none of them depends on another."""
    tables = [table for table in TABLES if names is None or table.name in names]
    return validate_pathways(
        lake=w.lake, features=w.features, day=DAY, tables=tables, out=out, progress=lambda text: None, docs=False
    )


def failures(result: dict) -> set[tuple[str, str, str]]:
    return {(r["severity"], r["table"], r["rule"]) for r in result["results"] if not r["success"]}


def test_good_data_passes_every_suite(lake: Path, tmp_path: Path) -> None:
    result = check(lake, tmp_path, DAYS)
    assert failures(result) == set()
    assert (result["critical_failed"], result["warning_failed"]) == (0, 0)
    tables = {(r["table"], r["day"]) for r in result["results"]}
    assert tables == {("impressions", day) for day in DAYS} | {
        (table, DAY) for table in ("schema", "intake", "items", "users")
    }
    require(result)


def test_good_pathways_pass_every_suite(workspace: Workspace, tmp_path: Path) -> None:
    result = check_pathways(workspace, tmp_path)
    assert failures(result) == set()
    assert {r["table"] for r in result["results"]} == {"schema", *(table.name for table in TABLES)}
    require(result)


def test_the_zoo_is_large_enough() -> None:
    assert len({kind.name for kind in ZOO}) == len(ZOO) >= 25


@pytest.mark.parametrize("kind", ZOO, ids=lambda kind: kind.name)
def test_bad_data_fails_for_its_own_reason(kind: Kind, copied: Workspace, tmp_path: Path) -> None:
    kind.spoil(copied)
    tables = {table for _, table, _ in kind.reasons}
    if kind.name.startswith("pathway") or any(table.startswith("user_") for table in tables):
        result = check_pathways(copied, tmp_path / "out", None if tables == {"schema"} else tables)
    else:
        result = check(copied.lake, tmp_path / "out")
    assert failures(result) == kind.reasons
    assert result["critical_failed"] == sum(severity == C for severity, _, _ in kind.reasons)
    assert result["warning_failed"] == sum(severity == W for severity, _, _ in kind.reasons)
    if result["critical_failed"]:
        with pytest.raises(ValueError, match="critical expectation") as caught:
            require(result)
        assert all(rule in str(caught.value) for severity, _, rule in kind.reasons if severity == C)
    else:
        require(result)


def test_a_failure_shows_the_offending_rows(copied: Workspace, tmp_path: Path) -> None:
    copied.change("impressions", first(item_id=999))
    result = check(copied.lake, tmp_path / "out")
    (entry,) = [r for r in result["results"] if not r["success"]]
    assert entry["unexpected_count"] == 1
    assert entry["example"][0]["item_id"] == 999
    assert set(entry["example"][0]) >= {"user_id", "item_id", "event_time"}
    with pytest.raises(ValueError, match=r"impressions 2025-01-03: .* 1 rows, such as \{.*'item_id': 999"):
        require(result)


def test_results_and_docs_are_written(lake: Path, tmp_path: Path) -> None:
    result = check(lake, tmp_path, docs=True)
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert "impressions-2025-01-03" in (tmp_path / "docs" / "index.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "results.json"]
    again = check(lake, tmp_path)
    assert again == result


def test_a_missing_partition_is_named(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no partition impressions/dt=2024-12-31 .*run the ingest"):
        check(lake, tmp_path, ["2024-12-31", DAY])


def test_a_lake_without_its_timezone_is_refused(copied: Workspace, tmp_path: Path) -> None:
    forget_the_timezone(copied)
    with pytest.raises(DataError, match="has no timezone: run the ingest of that day again"):
        check(copied.lake, tmp_path / "out")


def test_a_rule_that_cannot_be_told_fails(copied: Workspace, tmp_path: Path) -> None:
    """Averages of no rows are unknown, and unknown is not good."""
    copied.change("impressions", lambda rows: [])
    found = failures(check(copied.lake, tmp_path / "out"))
    assert {(C, "impressions", "there are impressions"), (C, "impressions", "a positive signal is observed")} <= found


def test_an_expectation_that_cannot_be_computed_is_critical(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import great_expectations.expectations as gxe

    from data_quality import WARNING, intake

    broken = gxe.ExpectColumnValuesToNotBeNull(column="no such column", notes="a bug", severity=WARNING)
    monkeypatch.setattr(intake, "intake_suite", lambda: [broken])
    result = check(lake, tmp_path)
    (entry,) = [r for r in result["results"] if r["table"] == "intake"]
    assert (entry["success"], entry["severity"]) == (False, "critical")
    assert "no such column" in entry["observed"]


def test_nothing_is_sent_over_the_network(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: called.append(address))
    check(lake, tmp_path)
    assert called == []
    assert os.environ["GX_ANALYTICS_ENABLED"] == "False"
