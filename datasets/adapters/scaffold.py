"""A first adapter for a new layout, and its test: `onerec data scaffold-adapter shop`.

What is written works as it stands, on CSV files of the columns below, and passes the kit: change it step by step.
"""

from __future__ import annotations

import re
from pathlib import Path

from datasets import adapters
from datasets.errors import DataError

ADAPTER = '''"""Logs of NAME: events (user, item, shown_at, liked, watched_ms), items and users, as CSV files."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import duckdb

from datasets.adapters.base import Adapter
from datasets.contract import LABELS

EVENTS = {"user": "BIGINT", "item": "BIGINT", "shown_at": "TIMESTAMP", "liked": "TINYINT", "watched_ms": "BIGINT"}
ITEMS = {"item": "BIGINT", "seller": "BIGINT", "title": "VARCHAR"}
USERS = {"user": "BIGINT", "country": "VARCHAR"}
SIGNALS = {"is_like": "liked"}  # what this source knows; every other label stays null


class CLASS(Adapter):
    """A folder of NAME's CSV files."""

    name = "NAME"
    layout = "CSV: NAME_events*.csv, NAME_items.csv, NAME_users.csv"
    timezone = "UTC"  # the zone whose midnight ends a log day

    @classmethod
    def matches(cls, source: Path) -> bool:
        events = any(source.glob("NAME_events*.csv"))
        return events and (source / "NAME_items.csv").exists()

    def files(self, day: date) -> list[Path]:
        return sorted(self.source.glob("NAME_events*.csv"))

    def days(self, con: duckdb.DuckDBPyConnection) -> list[date]:
        query = f"SELECT DISTINCT CAST(shown_at AS DATE) FROM ({self._events()}) ORDER BY 1"
        return [row[0] for row in con.execute(query).fetchall()]

    def impressions(self, con: duckdb.DuckDBPyConnection, days: list[date]) -> str:
        labels = ", ".join(f"{SIGNALS.get(name, 'CAST(NULL AS TINYINT)')} AS {name}" for name in LABELS)
        wanted = ", ".join(f"DATE '{day}'" for day in days)
        return f"""SELECT CAST(shown_at AS DATE) AS dt, "user" AS user_id, item AS item_id, shown_at AS event_time,
            CAST(NULL AS VARCHAR) AS request_id, CAST(NULL AS INTEGER) AS position, watched_ms AS play_time_ms,
            CAST(NULL AS BIGINT) AS duration_ms, {labels}, CAST(NULL AS VARCHAR) AS surface
            FROM ({self._events()}) WHERE CAST(shown_at AS DATE) IN ({wanted})"""

    def items(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        items = self.scan([self.source / "NAME_items.csv"], ITEMS, ("item",))
        return f"""SELECT item AS item_id, seller AS author_id, CAST(NULL AS TIMESTAMP) AS upload_time,
            CAST(NULL AS BIGINT) AS duration_ms, CAST(NULL AS INTEGER[]) AS tags, title AS caption,
            CAST(NULL AS VARCHAR) AS asr, CAST(NULL AS VARCHAR) AS ocr, CAST(NULL AS VARCHAR) AS cover_uri,
            CAST(NULL AS VARCHAR[]) AS frame_uris, CAST(NULL AS FLOAT[]) AS content_embedding FROM ({items})"""

    def users(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        users = self.scan([self.source / "NAME_users.csv"], USERS, ("user",))
        return f'SELECT "user" AS user_id, country FROM ({users})'

    def _events(self) -> str:
        return self.scan(self.files(date.min), EVENTS, ("user", "item", "shown_at"))
'''

TEST = '''"""The adapter of NAME keeps the promises of every adapter, and reads its columns right."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

IMPORTS
from datasets.ingest import ingest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two log days in the layout; an unknown signal is empty."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "NAME_events.csv").write_text(
        "user,item,shown_at,liked,watched_ms\\n"
        "1,10,2024-03-01 08:00:00,1,5000\\n"
        "2,11,2024-03-01 09:00:00,0,\\n"
        "2,10,2024-03-02 10:00:00,,700\\n"
    )
    (folder / "NAME_items.csv").write_text("item,seller,title\\n10,5,red shoes\\n11,,\\n")
    (folder / "NAME_users.csv").write_text("user,country\\n1,de\\n2,\\n")
    return folder


def test_NAME_passes_the_kit(source: Path, tmp_path: Path) -> None:
    check_adapter(CLASS, source=source, scratch=tmp_path)


def test_NAME_reads_its_columns(source: Path, tmp_path: Path) -> None:
    day, lake = date(2024, 3, 1), tmp_path / "lake"
    made = CLASS(source)
    ingest(source=source, day=day, lake=lake, bootstrap=True, progress=lambda text: None, adapter=made)
    rows = pq.read_table(lake / f"impressions/dt={day}/part-0.parquet").to_pylist()
    found = [(r["user_id"], r["item_id"], r["is_like"], r["play_time_ms"], r["is_click"]) for r in rows]
    assert found == [(1, 10, 1, 5000, None), (2, 11, 0, None, None)]
'''


def scaffold(name: str, repository: Path) -> tuple[Path, Path]:
    """Write the adapter and its test into a repository; return both paths. DataError rather than an overwrite."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,19}", name):
        raise DataError(
            f"{name!r} is no name for an adapter: write at most 20 lower case letters, digits and _, as in `shop`"
        )
    if name in [adapter.name for adapter in adapters.ADAPTERS]:
        raise DataError(f"there is an adapter {name!r}: choose another name")
    if not (repository / "datasets" / "adapters").is_dir():
        raise DataError(f"{repository} holds no datasets/adapters: run this in the repository, or give --into")
    adapter = repository / "datasets" / "adapters" / f"{name}.py"
    test = repository / "tests" / "datasets" / f"test_{name}_adapter.py"
    title = "".join(part.capitalize() for part in name.split("_"))
    for file in (adapter, test):
        if file.exists():
            raise DataError(f"{file} exists: choose another name, or remove it")
    imports = ["from datasets.adapters.kit import check_adapter", f"from datasets.adapters.{name} import {title}"]
    for file, text in ((adapter, ADAPTER), (test, TEST.replace("IMPORTS", "\n".join(sorted(imports))))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("NAME", name).replace("CLASS", title), encoding="utf-8")
    return adapter, test
