"""`onerec data`: what it prints and its status on good, bad and unreadable folders; the scaffold."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.main import main
from datasets.ingest import ingest
from datasets.simulator import simulate

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from tiny_kuairand import DAYS, tiny_files

LAST = "2025-01-03"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Contract Parquet of three simulated days."""
    out = tmp_path_factory.mktemp("check") / "logs"
    sizes = {"days": 3, "users": 40, "items": 60, "impressions": 900}
    simulate(out, end=date(2025, 1, 3), **sizes, seed=5, progress=lambda text: None)
    return out


@pytest.fixture
def spoiled(logs: Path, tmp_path: Path):
    """spoiled(column, value): a copy in which the first row of the last day has another value."""

    def make(column: str, value: object) -> Path:
        copy = tmp_path / "logs"
        shutil.copytree(logs, copy)
        (file,) = (copy / "impressions" / f"dt={LAST}").glob("*.parquet")
        table = pq.read_table(file, partitioning=None)
        rows = table.to_pylist()
        rows[0][column] = value
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
        return copy

    return make


def test_good_logs_are_status_0(logs: Path, capsys) -> None:
    assert main(["data", "check", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "on 3 days, 2025-01-01 to 2025-01-03: 0 critical, 0 warning" in out and out.count("\n") == 1


def test_a_critical_fault_is_shown_with_place_rule_count_and_row(spoiled, capsys) -> None:
    assert main(["data", "check", str(spoiled("play_time_ms", -5))]) == 1
    where, rule, example, total = capsys.readouterr().out.splitlines()
    assert where == f"critical  impressions dt={LAST} play_time_ms"
    assert rule.strip() == "broken: play_time_ms is not negative: 1 row"
    assert "user_id=" in example and "event_time=2025-01-0" in example and "play_time_ms=-5" in example
    assert total.endswith("1 critical, 0 warning")


def test_json_has_every_check(spoiled, capsys) -> None:
    assert main(["data", "check", str(spoiled("is_like", 3)), "--json", "--day", LAST]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["layout"], found["days"], found["critical_failed"]) == ("contract-parquet", [LAST], 1)
    (entry,) = [r for r in found["results"] if not r["success"]]
    assert (entry["table"], entry["column"], entry["unexpected_count"]) == ("impressions", "is_like", 1)
    assert entry["example"][0]["is_like"] == 3
    assert len(found["results"]) > 40


def test_warnings_alone_are_status_0(logs: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "logs"
    shutil.copytree(logs, copy)
    (file,) = (copy / "items" / f"dt={LAST}").glob("*.parquet")
    items = pq.read_table(file, partitioning=None)
    rows = items.to_pylist()
    rows[0]["upload_time"] += timedelta(days=400)
    pq.write_table(pa.Table.from_pylist(rows, schema=items.schema), file)
    assert main(["data", "check", str(copy), "--docs", str(tmp_path / "docs")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"warning   items dt={LAST} upload_time") and "0 critical, 1 warning" in out
    assert (tmp_path / "docs" / "docs" / "index.html").is_file() and (tmp_path / "docs" / "results.json").is_file()


def test_wider_types_than_the_contract_are_no_fault(logs: Path, tmp_path: Path, capsys) -> None:
    """The adapter casts integers and times, so a folder may hold others; text for a number is a fault."""
    copy = tmp_path / "logs"
    shutil.copytree(logs, copy)
    (file,) = (copy / "impressions" / f"dt={LAST}").glob("*.parquet")
    table = pq.read_table(file, partitioning=None)
    at = table.schema.get_field_index("is_like")
    pq.write_table(table.set_column(at, "is_like", table["is_like"].cast(pa.int64())), file)
    assert main(["data", "check", str(copy)]) == 0
    pq.write_table(table.set_column(at, "is_like", table["is_like"].cast(pa.string())), file)
    capsys.readouterr()
    assert main(["data", "check", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "the file has the contract's columns: 1 column" in out
    assert f"partition=impressions/dt={LAST}, column=is_like" in out


def test_a_raw_layout_is_ingested_and_what_was_set_aside_is_shown(tmp_path: Path, capsys) -> None:
    files = tiny_files()
    for row in files.log[:10]:
        row["video_id"] = -1
    source = files.write(tmp_path / "raw")
    main(["data", "check", str(source), "--day", DAYS[0].isoformat()])
    out = capsys.readouterr().out
    assert "critical  intake" in out and "quarantined rows are at most 20 %: 1 partition" in out
    assert "example: reason=no_id, user_id=" in out and "item_id=-1" in out
    assert list(source.parent.iterdir()) == [source], "nothing is left beside the logs"


def test_a_lake_is_checked_by_its_manifests(logs: Path, tmp_path: Path, capsys) -> None:
    lake = tmp_path / "lake"
    ingest(source=logs, day=date(2025, 1, 2), lake=lake, bootstrap=True, progress=lambda text: None)
    assert main(["data", "check", str(lake), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["days"] == ["2025-01-01", "2025-01-02"]
    assert {r["table"] for r in found["results"]} == {"schema", "intake", "impressions", "items", "users"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda source: shutil.rmtree(source), "is not a folder: give the folder that holds the log files"),
        (lambda source: [f.unlink() for f in source.glob("log_*")], "is in no known layout"),
        (lambda source: next(source.glob("log_*")).write_bytes(b""), "is empty: copy it again"),
        (
            lambda source: [f.write_text(f.read_text().replace("20220425", "soon")) for f in source.glob("log_*")],
            "line 2, column 'date' is 'soon', not a INTEGER",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_critical_without_a_stack_trace(spoil, said, tmp_path: Path, capsys) -> None:
    source = tiny_files().write(tmp_path / "raw")
    spoil(source)
    assert main(["data", "check", str(source)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("critical  source") and said in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_a_day_that_is_not_there_is_named(logs: Path, capsys) -> None:
    assert main(["data", "check", str(logs), "--day", "2025-02-01"]) == 1
    assert "no impressions of 2025-02-01; there are days from 2025-01-01 to 2025-01-03" in capsys.readouterr().out


def test_scaffold_writes_two_files_and_says_what_next(tmp_path: Path, capsys) -> None:
    (tmp_path / "datasets" / "adapters").mkdir(parents=True)
    assert main(["data", "scaffold-adapter", "shop", "--into", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "datasets/adapters/shop.py" in out and "add the class to ADAPTERS" in out
    assert (tmp_path / "tests" / "datasets" / "test_shop_adapter.py").is_file()
    assert main(["data", "scaffold-adapter", "Shop", "--into", str(tmp_path)]) == 1
    assert "'Shop' is no name for an adapter" in capsys.readouterr().err
