"""A small simulated lake, and a copy of it in which one partition's rows or counts were changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.ingest import ingest
from datasets.partitions import PART, read_manifest, write_partition
from datasets.simulator import simulate

DAY = "2025-01-03"
Rows = list[dict[str, Any]]


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days, 300 impressions each, and a fourth for evaluation."""
    folder = tmp_path_factory.mktemp("quality")
    sizes = {"days": 4, "users": 60, "items": 80, "impressions": 1600}
    simulate(folder / "source", end=date(2025, 1, 4), **sizes, seed=5, progress=quiet)
    day = date.fromisoformat(DAY)
    ingest(source=folder / "source", day=day, lake=folder / "lake", bootstrap=True, progress=quiet)
    return folder / "lake"


@pytest.fixture
def changed(lake: Path, tmp_path: Path) -> Callable[..., Path]:
    """changed(table, change, schema=None, counts=None) -> a lake whose partition of DAY went through `change`."""

    def make(
        table: str,
        change: Callable[[Rows], Rows],
        schema: Callable[[pa.Schema], pa.Schema] | None = None,
        counts: dict[str, int] | None = None,
    ) -> Path:
        copy = tmp_path / "lake"
        shutil.copytree(lake, copy)
        path = copy / table / f"dt={DAY}"
        manifest, old = read_manifest(path), pq.read_table(path / PART, partitioning=None)
        loose = pa.schema([field.with_nullable(True) for field in old.schema])
        rows = pa.Table.from_pylist(change(old.to_pylist()), schema=schema(loose) if schema else loose)
        fields = {name: manifest[name] for name in ("timezone", "sources") if name in manifest}
        write_partition(path, rows, counts=manifest["counts"] | (counts or {}), **fields)
        return copy

    return make
