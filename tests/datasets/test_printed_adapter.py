"""The adapter printed in docs/own_logs.md works as it stands, and is short."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import datasets.adapters
from datasets.ingest import ingest

PAGE = Path(__file__).parents[2] / "docs" / "own_logs.md"


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 60
    names: dict = {}
    exec(compile(code, PAGE.name, "exec"), names)
    monkeypatch.setattr(datasets.adapters, "ADAPTERS", (*datasets.adapters.ADAPTERS, names["Shop"]))
    return names["Shop"]


def test_the_printed_adapter_brings_its_csv_files_into_the_lake(shop, tmp_path: Path) -> None:
    source, lake = tmp_path / "shop", tmp_path / "lake"
    source.mkdir()
    (source / "events.csv").write_text(
        "user,item,shown_at,liked,watched_ms\n"
        "1,10,2024-03-01 08:00:00,1,5000\n"
        "1,11,2024-03-01 09:00:00,0,\n"
        "2,10,2024-03-01 23:59:59,,700\n"
        "2,12,2024-03-02 00:00:00,1,700\n"
    )
    (source / "items.csv").write_text("item,seller,title\n10,5,red shoes\n11,,\n12,5,\n")
    (source / "users.csv").write_text("user,country\n1,de\n2,\n")
    found = ingest(source=source, day=date(2024, 3, 1), lake=lake, bootstrap=True, progress=lambda _: None)
    assert found["adapter"] == "shop" and found["days"] == ["2024-03-01"] and found["evaluation_day"] == "2024-03-02"
    rows = pq.read_table(lake / "impressions" / "dt=2024-03-01" / "part-0.parquet").to_pylist()
    assert [(r["user_id"], r["item_id"], r["is_like"], r["play_time_ms"]) for r in rows] == [
        (1, 10, 1, 5000),
        (1, 11, 0, None),
        (2, 10, None, 700),
    ]
    assert all(r["is_click"] is None for r in rows)  # a signal the shop lacks stays unknown
    items = pq.read_table(lake / "items" / "dt=2024-03-01" / "part-0.parquet").to_pylist()
    assert [(i["item_id"], i["author_id"], i["caption"]) for i in items] == [
        (10, 5, "red shoes"),
        (11, -1, None),
        (12, 5, None),
    ]
