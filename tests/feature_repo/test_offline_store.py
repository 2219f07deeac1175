"""The offline store: Feast's default loses label rows, ours keeps every one and agrees with Feast's DuckDB store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field
from feast.types import Array, Int64

from datasets.partitions import PART
from feature_repo import parquet_rows
from feature_repo.entities import USER
from feature_repo.offline_duckdb import AsofDuckDBOfflineStore
from feature_repo.profiles import LocalProfile
from feature_repo.services import SERVICE
from feature_repo.store import quiet
from feature_repo.training_set import FEATURE_COLUMNS
from feature_repo.views import VIEW_COLUMNS
from tests.feature_repo.conftest import DAYS, OtherStores, end_of

ENTITY = pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.timestamp("us", "UTC")), ("label_row", pa.int64())])


@pytest.fixture(scope="module")
def labels(folders) -> pa.Table:
    """Keys of all label rows, numbered: some of users whom no view knows, some before any snapshot."""
    table = pa.concat_tables(pq.read_table(p, columns=ENTITY.names[:2]) for p in folders[0].glob(f"labels/*/{PART}"))
    return table.append_column("label_row", pa.array(np.arange(len(table)))).cast(ENTITY)


def joined(folders: tuple[Path, Path], entity: pd.DataFrame | str, kind: str | None = None, **asked) -> pa.Table:
    """The service's features of the labels, by our store or by the one of Feast that is named; in label order."""
    profile = OtherStores(offline={"type": kind}) if kind else LocalProfile()
    with quiet():
        store = FeatureStore(config=profile.repo_config(folders[1]))
        asked = asked or {"features": store.get_feature_service(SERVICE)}
        return store.get_historical_features(entity_df=entity, **asked).to_arrow().sort_by("label_row")


def test_feasts_default_store_drops_rows_and_ours_keeps_every_one(folders, labels):
    static = {"features": ["user_static:static_codes"]}
    lossy = joined(folders, labels.to_pandas(), "file", **static)
    ours = joined(folders, labels.to_pandas(), **static)
    assert ours["label_row"].to_pylist() == list(range(len(labels)))
    known = {row["label_row"] for row in ours.to_pylist() if row["static_codes"] is not None}
    lost = set(range(len(labels))) - set(lossy["label_row"].to_pylist())
    assert len(lost) > 20  # if Feast mends this, our store is needed for its speed only
    assert not lost & known


def test_equals_feasts_duckdb_store(folders, labels):
    theirs, ours = joined(folders, labels.to_pandas(), "duckdb"), joined(folders, labels.to_pandas())
    assert ours.column_names == theirs.column_names
    for name in ["label_row", *FEATURE_COLUMNS]:
        assert ours[name].to_pylist() == theirs[name].to_pylist(), name


def test_the_labels_may_be_a_query_and_keep_their_order(folders, labels, tmp_path):
    shuffled = labels.take(np.random.default_rng(1).permutation(len(labels)))
    pq.write_table(shuffled, tmp_path / "labels.parquet")
    with quiet():
        store = FeatureStore(config=LocalProfile().repo_config(folders[1]))
        found = store.get_historical_features(
            entity_df=f"SELECT * FROM '{tmp_path}/labels.parquet'", features=["user_seen:seen_item_id"]
        ).to_arrow()
    assert found["label_row"].to_pylist() == shuffled["label_row"].to_pylist()
    expected = joined(folders, labels.to_pandas(), features=["user_seen:seen_item_id"])["seen_item_id"].to_pylist()
    assert [expected[i] for i in found["label_row"].to_pylist()] == found["seen_item_id"].to_pylist()


@pytest.mark.parametrize("days", [0, 1, 3])
def test_expiry_and_prefixed_names(folders, labels, days):
    """What our views do not use, but an offline store promises: a time to live, and full feature names."""
    config = LocalProfile().repo_config(folders[1])
    view = FeatureView(
        name="user_static",
        entities=[USER],
        ttl=timedelta(days=days),
        schema=[Field(name="user_id", dtype=Int64), Field(name="static_codes", dtype=Array(Int64))],
        source=LocalProfile().source(folders[0], "user_static"),
    )
    asked = (config, [view], ["user_static:static_codes"], labels.to_pandas(), None, "onerec", True)
    ours = AsofDuckDBOfflineStore.get_historical_features(*asked).to_arrow()
    rows = [row for path in folders[0].glob(f"user_static/*/{PART}") for row in pq.read_table(path).to_pylist()]
    expected = []
    for label in labels.to_pylist():
        past = [
            r for r in rows if r["user_id"] == label["user_id"] and r["event_timestamp"] <= label["event_timestamp"]
        ]
        newest = max(past, key=lambda row: row["event_timestamp"], default=None)
        alive = newest and (not days or label["event_timestamp"] - newest["event_timestamp"] <= view.ttl)
        expected.append(newest["static_codes"] if alive else None)
    assert ours["user_static__static_codes"].to_pylist() == expected


def test_the_newest_rows_of_an_interval(folders):
    """What a materialization reads."""
    config, start, end = LocalProfile().repo_config(folders[1]), end_of(DAYS[1]), end_of(DAYS[3])
    source, columns = LocalProfile().source(folders[0], "user_short"), list(VIEW_COLUMNS["user_short"])
    found = AsofDuckDBOfflineStore.pull_latest_from_table_or_query(
        config, source, ["user_id"], columns, "event_timestamp", None, start, end
    ).to_arrow()
    rows = [row for path in folders[0].glob(f"user_short/*/{PART}") for row in pq.read_table(path).to_pylist()]
    newest: dict[int, dict] = {}
    for row in sorted(rows, key=lambda row: row["event_timestamp"]):
        if start <= row["event_timestamp"] <= end:
            newest[row["user_id"]] = row
    assert sorted(found.to_pylist(), key=lambda row: row["user_id"]) == [newest[user] for user in sorted(newest)]


def test_a_saved_result_is_not_overwritten(folders, labels, tmp_path):
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    with quiet():
        store = FeatureStore(config=LocalProfile().repo_config(folders[1]))
        job = store.get_historical_features(entity_df=labels.to_pandas(), features=["user_seen:seen_item_id"])
        storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
        job.persist(storage)
        assert pq.read_table(tmp_path / "saved.parquet").equals(job.to_arrow())
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)


@pytest.mark.parametrize("whole", [0.0, 2.0], ids=["files kept whole", "rows picked"])
def test_lists_of_more_values_than_32_bits_count(folders, labels, monkeypatch, whole):
    """At a limit of ten values: the same lists, through 64-bit offsets, whatever the pieces and whatever is picked."""
    expected, kinds, one = joined(folders, labels.to_pandas()), set(), parquet_rows._one

    def seen(column, pool):
        array = one(column, pool)
        kinds.add(array.type.id)
        return array

    monkeypatch.setattr(parquet_rows, "MOST_VALUES", 10)
    monkeypatch.setattr(parquet_rows, "PIECE", 7)
    monkeypatch.setattr(parquet_rows, "WHOLE", whole)
    monkeypatch.setattr(parquet_rows, "_one", seen)
    found = joined(folders, labels.to_pandas())
    assert kinds == {pa.large_list(pa.int64()).id}
    assert found.schema == expected.schema and found.to_pylist() == expected.to_pylist()


def test_lists_with_nulls_are_laid_end_to_end_too():
    from concurrent.futures import ThreadPoolExecutor

    column = pa.chunked_array([pa.array([[1], None, [2, 3]])[1:], pa.array([[4, None]], pa.list_(pa.int64()))])
    with ThreadPoolExecutor(1) as pool:
        assert parquet_rows._one(column, pool).to_pylist() == [None, [2, 3], [4, None]]
        sliced = pa.chunked_array([pa.array([[1], [9, 8], [2, 3]])[1:], pa.array([[4]])])
        assert parquet_rows._one(sliced, pool).to_pylist() == [[9, 8], [2, 3], [4]]


def test_lists_of_one_length_are_gathered_as_arrow_takes_them():
    column = pa.array([[9, 9], [1, 2], [3, 4], [5, 6]])[1:]
    place, missing = np.array([2, 0, -1, 2, -1]), np.array([False, False, True, False, True])
    matrix = parquet_rows._matrix(column)
    for kind in (column.type, pa.large_list(pa.int64())):
        found = parquet_rows._gathered(matrix, place, missing, kind)
        assert found.equals(column.take(pa.array(place, mask=missing)).cast(kind))
    whole = parquet_rows._gathered(matrix, place[:2], missing[:2], column.type)
    assert whole.to_pylist() == [[5, 6], [1, 2]] and whole.null_count == 0
    for other in ([[1], [2, 3]], [[1, 2], None], [[1, None], [2, 3]], [[], []], [["a"], ["b"]]):
        assert parquet_rows._matrix(pa.array(other)) is None
