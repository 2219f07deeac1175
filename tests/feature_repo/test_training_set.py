"""The join of labels and features: equal to an ASOF JOIN by DuckDB, loses nobody, sees nothing of the future."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.errors import DataError
from datasets.partitions import PART, partition_path
from feature_repo import training_set
from feature_repo.training_set import FEATURE_COLUMNS, LABEL_COLUMNS, LABEL_TABLES, SCHEMA, build
from feature_repo.views import VIEW_COLUMNS
from models.onerec.config import onerec_laptop
from models.onerec.features import Catalogue
from models.training.data import TrainingSet
from tests.feature_repo.conftest import DAYS, STATIC_FEATURES, STRANGERS, end_of, write_table


def reference(features: Path, folder: str, day: date) -> list[dict]:
    """The same set by DuckDB's own ASOF JOIN, view by view."""
    query = f"SELECT l.*, {', '.join(FEATURE_COLUMNS)} FROM read_parquet('{features}/{folder}/dt={day}/{PART}') l"
    for view in VIEW_COLUMNS:
        query += f""" ASOF LEFT JOIN (SELECT * FROM read_parquet('{features}/{view}/dt=*/{PART}')) {view}
            ON l.user_id = {view}.user_id AND l.event_timestamp >= {view}.event_timestamp"""
    with duckdb.connect() as connection:
        rows = connection.sql(f"{query} ORDER BY l.user_id, l.event_timestamp").to_arrow_table().to_pylist()
    for row in rows:
        for column in FEATURE_COLUMNS:
            empty = [0] * STATIC_FEATURES if column == "static_codes" else []
            row[column] = empty if row[column] is None else row[column]
    return rows


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize("day", [DAYS[0], DAYS[3], DAYS[4]])
def test_equals_an_asof_join(folders, day, kind):
    features, feature_store = folders
    manifest = build(features=features, feature_store=feature_store, day=day, kind=kind)
    table = pq.read_table(partition_path(features / kind, day) / PART)
    expected = reference(features, LABEL_TABLES[kind], day)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [{name: row[name] for name in SCHEMA.names} for row in expected]
    unknown = sum(not row["seen_item_id"] and not any(row["static_codes"]) for row in expected)
    assert manifest["rows"] == len(expected)
    assert manifest["counts"]["users_without_history"] == unknown >= len(STRANGERS)
    assert manifest["counts"]["impressions"] == sum(len(row["item_id"]) for row in expected)


def test_a_set_joined_in_pieces_is_the_same_set(folders, monkeypatch):
    features, feature_store = folders
    whole = build(features=features, feature_store=feature_store, day=DAYS[3])
    path = partition_path(features / "training", DAYS[3]) / PART
    expected = pq.read_table(path).to_pylist()
    monkeypatch.setattr(training_set, "JOIN_ROWS", 7)
    monkeypatch.setattr(training_set, "GROUP_ROWS", 5)
    pieces = build(features=features, feature_store=feature_store, day=DAYS[3])
    assert pq.read_table(path).to_pylist() == expected
    assert pieces["counts"] == whole["counts"]
    assert pq.ParquetFile(path).metadata.num_row_groups == -(-len(expected) // 5)
    monkeypatch.undo()
    build(features=features, feature_store=feature_store, day=DAYS[3])


def test_nothing_known_keeps_the_row(folders):
    features, feature_store = folders
    build(features=features, feature_store=feature_store, day=DAYS[0])
    rows = pq.read_table(partition_path(features / "training", DAYS[0]) / PART).to_pylist()
    assert len(rows) == 25  # nobody has a snapshot before the first day
    for row in rows:
        assert row["static_codes"] == [0] * STATIC_FEATURES
        assert all(row[column] == [] for column in FEATURE_COLUMNS if column != "static_codes")


def test_later_snapshots_change_nothing(folders, tmp_path):
    """Building a past day again, after more days have come, gives the same bytes."""
    features, feature_store = folders
    first = build(features=features, feature_store=feature_store, day=DAYS[2])
    late = DAYS[-1] + timedelta(days=30)
    for view, columns in VIEW_COLUMNS.items():
        lists = {column: [[7] * STATIC_FEATURES] * 40 for column in columns}
        write_table(partition_path(features / view, late), range(40), [end_of(late)] * 40, lists)
    again = build(features=features, feature_store=feature_store, day=DAYS[2])
    assert again["digest"] == first["digest"]


def test_a_user_may_have_several_rows_and_a_day_none(folders):
    features, feature_store = folders
    day = date(2022, 6, 1)
    instants = [end_of(d) + timedelta(milliseconds=1) for d in DAYS[1:4]]
    lists = {column: [[1], [2], [3], [4]] for column in LABEL_COLUMNS}
    write_table(partition_path(features / "labels", day), [3, 3, 3, 900], [*instants, instants[0]], lists)
    build(features=features, feature_store=feature_store, day=day)
    rows = pq.read_table(partition_path(features / "training", day) / PART).to_pylist()
    assert [{name: row[name] for name in SCHEMA.names} for row in reference(features, "labels", day)] == rows
    assert len({str(row["seen_item_id"]) for row in rows}) > 1
    write_table(partition_path(features / "labels", day), [], [], {column: [] for column in LABEL_COLUMNS})
    assert build(features=features, feature_store=feature_store, day=day)["rows"] == 0


def test_the_model_reads_it(folders):
    features, feature_store = folders
    build(features=features, feature_store=feature_store, day=DAYS[4])
    config = onerec_laptop(codebook_size=16, items=256, static_features=STATIC_FEATURES)
    found = TrainingSet([partition_path(features / "training", DAYS[4]) / PART], Catalogue(np.arange(256)), config)
    batch = found.batch(np.arange(len(found)), max_targets=4)
    assert batch["static"].shape == (25, STATIC_FEATURES)
    assert batch["short"].shape[2] == 7
    assert (found.now_s == [int((end_of(DAYS[3])).timestamp()) - (u % 3 == 2) for u in found.user_id]).all()


def test_errors_say_what_to_do(folders, tmp_path):
    features, feature_store = folders
    with pytest.raises(DataError, match=r"labels/dt=2023-01-01 is missing: run the pathways step"):
        build(features=features, feature_store=feature_store, day=date(2023, 1, 1))
    with pytest.raises(DataError, match="holds no registry"):
        build(features=features, feature_store=tmp_path, day=DAYS[2])
    copy = tmp_path / "copy"
    (copy / "labels").mkdir(parents=True)
    (copy / "labels" / f"dt={DAYS[2]}").symlink_to(features / "labels" / f"dt={DAYS[2]}")
    with pytest.raises(DataError, match="apply it again"):
        build(features=copy, feature_store=feature_store, day=DAYS[2])
