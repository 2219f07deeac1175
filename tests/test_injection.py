"""SQL through identifiers: names that come from outside (columns, folders, sources, projects) are data, never SQL."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_quality.checkpoint import validate
from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.simulator import simulate
from feature_repo.build import build_features
from feature_repo.profiles import profile_from_environment
from kfp_components.workspace import Workspace

DAY = date(2025, 1, 3)
BEACON = "stolen.csv"  # what the injected SQL would write
SQL = "COPY (SELECT 1) TO '{}'"
NAMES = ["plain", "a'; {}; --", 'b"; {}; --', 'c" AS d, (SELECT 1) AS "e', "$1", "?", "f) FROM users; {}; --"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(logs, file that must never appear): a folder with a quote in its name, and user columns that are SQL."""
    base = tmp_path_factory.mktemp("hostile")
    beacon = base / BEACON
    logs = base / "o'brien\"s; DROP TABLE items; --"
    sizes = {"days": 4, "users": 40, "items": 60, "impressions": 900}
    simulate(logs, end=date(2025, 1, 4), **sizes, seed=2, progress=lambda _: None)
    for file in (logs / "users").rglob("*.parquet"):
        table = pq.read_table(file)
        for number, name in enumerate(NAMES):
            name = name.format(SQL.format(beacon))
            table = table.append_column(name, pa.array([f"{number}' OR ''='"] * len(table)))
        pq.write_table(table, file)
    return logs, beacon


def test_hostile_columns_and_folders_stay_data(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    logs, beacon = hostile
    lake, features = tmp_path / "l'ake", tmp_path / "fe\"a'tures"
    tables = ingest(source=logs, day=DAY, lake=lake, bootstrap=True, progress=lambda _: None)
    day = DAY.isoformat()
    validate(lake=lake, day=day, days=[day], out=tmp_path / "quality", progress=lambda _: None, docs=False)
    where = {"lake": lake, "features": features, "feature_store": tmp_path / "st'ore"}
    build_features(**where, day=day, ingest=tables, previous=None, bootstrap=True, progress=lambda _: None)
    (users,) = (lake / "users").rglob("*.parquet")
    assert {name.format(SQL.format(beacon)) for name in NAMES} <= set(pq.read_schema(users).names)
    assert not list(beacon.parent.glob(BEACON)) and not Path(BEACON).exists()


@pytest.mark.parametrize("source", ["a'; DROP TABLE x; --", "../up", "a/b", 'a"b', "A", "", "a b"])
def test_a_source_is_a_plain_name(source: str) -> None:
    with pytest.raises(ValueError, match="no folder name"):
        Workspace(root="var", source=source)


@pytest.mark.parametrize("project", ["a'; DROP TABLE x", "a-b", "", "1a", "a.b"])
def test_a_feature_project_is_a_plain_name(project: str) -> None:
    with pytest.raises(DataError, match="letters, digits and underscores"):
        profile_from_environment({"ONEREC_FEATURE_PROJECT": project})
