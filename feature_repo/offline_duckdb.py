"""The local profile's offline store: Feast's DuckDB store with point-in-time joins that read keys first, lists last.

Feast's own `file` store drops label rows without a word. Its `duckdb` store keeps them, but joins every label row with
every earlier feature row of its user, lists and all, and only then keeps the newest: time and memory grow with the
days. Here DuckDB's ASOF join sees keys and time stamps only and answers *which* row is the newest; then each Parquet
file is read once and only the rows that won are kept. Rows come back in the order of the entity rows, as Arrow.

The results are those of Feast's `duckdb` store (tests/feature_repo/test_offline_store.py). What the pathways do not
need (on-demand views, field mappings, created time stamps, other sources than Parquet files) is left to that store.

Legend: N entity or label rows, P of them with a match, R rows of all files of a view, W of them that won.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, FileSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from pydantic import StrictStr

from feature_repo.parquet_rows import PIECE, PLACE, ParquetRows, quoted

_ROW = "entity_row"


class AsofDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):
    type: StrictStr = "feature_repo.offline_duckdb.AsofDuckDBOfflineStore"


class AsofDuckDBOfflineStore(DuckDBOfflineStore):
    """Point-in-time joins by DuckDB's ASOF JOIN over keys; the lists are read for the rows that won."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """The newest row of each view at or before each entity row. `entity_df`: a frame, or a DuckDB query."""
        asked = {ref.split(":")[0] for ref in feature_refs}
        if asked != {view.projection.name_to_use() for view in feature_views} or not all(map(_plain, feature_views)):
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, entity_df, registry, project, full_feature_names,
                filter_by_created_timestamp,
            )  # fmt: skip
        entity: pa.Table
        if isinstance(entity_df, str):
            with duckdb.connect() as connection:
                entity = connection.sql(entity_df).to_arrow_table()
        else:
            entity = pa.Table.from_pandas(entity_df, preserve_index=False)
        stamp = infer_event_timestamp_from_entity_df({f.name: f.type.to_pandas_dtype() for f in entity.schema})

        def run() -> pa.Table:
            found = entity
            with duckdb.connect() as connection:
                for view in feature_views:
                    prefix = view.projection.name_to_use()
                    features = [ref.split(":")[1] for ref in feature_refs if ref.split(":")[0] == prefix]
                    column_prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
                    columns = _asof(connection, entity, stamp, view, features)
                    for name in features:
                        found = found.append_column(f"{column_prefix}{name}", columns[name])
            return found

        newest = entity[stamp].combine_chunks().cast(pa.timestamp("us", "UTC"))
        bounds = pa.compute.min_max(newest).as_py()
        keys = [name for name in entity.column_names if name != stamp]
        return ArrowRetrievalJob(
            run, full_feature_names, RetrievalMetadata(feature_refs, keys, bounds["min"], bounds["max"])
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity with a time stamp in [start_date, end_date]: what materialization writes."""
        if not _parquet(data_source) or created_timestamp_column or data_source.field_mapping:
            return DuckDBOfflineStore.pull_latest_from_table_or_query(
                config, data_source, join_key_columns, feature_name_columns, timestamp_field,
                created_timestamp_column, start_date, end_date,
            )  # fmt: skip

        def run() -> pa.Table:
            rows = ParquetRows(data_source, [*join_key_columns, timestamp_field])
            keys = ", ".join(map(quoted, join_key_columns))
            with duckdb.connect() as connection:
                won_W = connection.execute(
                    f"""SELECT arg_max({PLACE}, {quoted(timestamp_field)}) AS won FROM {rows.keys}
                    WHERE {quoted(timestamp_field)} BETWEEN $start AND $end GROUP BY {keys} ORDER BY won""",
                    {"files": rows.paths, "start": start_date, "end": end_date},
                ).fetchnumpy()["won"]
            return rows.rows(rows.numbers(won_W), [*join_key_columns, *feature_name_columns, timestamp_field])

        return ArrowRetrievalJob(run, False, None)


class ArrowRetrievalJob(RetrievalJob):
    """A retrieval whose result is an Arrow table; it runs when it is asked for."""

    def __init__(self, run: Callable[[], pa.Table], full_feature_names: bool, metadata: RetrievalMetadata | None):
        self._run, self._full_feature_names, self._metadata = run, full_feature_names, metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._run()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._run().to_pandas()

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list:
        return []

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(self, storage: SavedDatasetFileStorage, allow_overwrite: bool = False, timeout: int | None = None):  # type: ignore[override]
        path = Path(storage.file_options.uri)
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        pq.write_table(self._run(), path)


def _asof(
    connection: duckdb.DuckDBPyConnection, entity: pa.Table, stamp: str, view: FeatureView, features: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """The feature columns [N] of one view, null where an entity row has no row at or before it, or an expired one."""
    source = view.batch_source
    assert source is not None
    names = {e.name: e.name for e in view.entity_columns} | view.projection.join_key_map
    rows = ParquetRows(source, [*names, source.timestamp_field])
    connection.register("asked", entity.select([*names.values(), stamp]).append_column(_ROW, _numbers(len(entity))))
    time = quoted(source.timestamp_field)
    same = " AND ".join(f"asked.{quoted(asked)} = k.{quoted(own)}" for own, asked in names.items())
    alive = f"AND asked.{quoted(stamp)} <= k.{time} + INTERVAL {view.ttl.total_seconds()} SECOND" if view.ttl else ""
    connection.execute("SET preserve_insertion_order = false")  # the pairs come in any order
    pairs: pa.Table = connection.sql(
        f"""SELECT {_ROW}, {PLACE} AS won FROM asked ASOF JOIN {rows.keys} k
        ON {same} AND asked.{quoted(stamp)} >= k.{time} WHERE true {alive}""",
        params={"files": rows.paths},
    ).to_arrow_table()
    connection.unregister("asked")
    place_N, won_R = np.full(len(entity), -1), np.zeros(len(rows), bool)

    def place(batch: pa.RecordBatch) -> None:
        number_P = rows.numbers(batch["won"].to_numpy())
        place_N[batch[_ROW].to_numpy()] = number_P
        won_R[number_P] = True

    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        list(pool.map(place, pairs.to_batches(PIECE)))
    del pairs
    return rows.lists(place_N, won_R, features)


def _numbers(count: int) -> pa.Array:
    return pa.array(np.arange(count))


def _parquet(source: DataSource | None) -> bool:
    return isinstance(source, FileSource) and isinstance(source.file_format, ParquetFormat)


def _plain(view: FeatureView) -> bool:
    source = view.batch_source
    return _parquet(source) and not (source.field_mapping or source.created_timestamp_column)  # type: ignore[union-attr]
