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

_ROW = "entity_row"
PIECE = 1 << 18  # rows that one thread gathers at a time
PLACE = "CAST(file_index AS BIGINT) << 32 | CAST(file_row_number AS BIGINT)"
"""Where a row lies: rises with file and row, so that the greatest is the last."""


class AsofDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):
    type: StrictStr = "feature_repo.offline_duckdb.AsofDuckDBOfflineStore"


class AsofDuckDBOfflineStore(DuckDBOfflineStore):
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
            files = _Files(data_source, [*join_key_columns, timestamp_field])
            keys = ", ".join(map(_quoted, join_key_columns))
            with duckdb.connect() as connection:
                won_W = connection.execute(
                    f"""SELECT arg_max({PLACE}, {_quoted(timestamp_field)}) AS won FROM {files.keys}
                    WHERE {_quoted(timestamp_field)} BETWEEN $start AND $end GROUP BY {keys} ORDER BY won""",
                    {"files": files.paths, "start": start_date, "end": end_date},
                ).fetchnumpy()["won"]
            return files.rows(files.numbers(won_W), [*join_key_columns, *feature_name_columns, timestamp_field])

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


class _Files:
    """The Parquet files of a source as one table whose rows are numbered end to end, file by file."""

    def __init__(self, source: DataSource, keys: Sequence[str]) -> None:
        pattern = Path(source.path)  # type: ignore[attr-defined]
        root = Path(*pattern.parts[: next((i for i, p in enumerate(pattern.parts) if "*" in p), len(pattern.parts))])
        found = sorted(root.glob(str(pattern.relative_to(root)))) if root != pattern else [pattern]
        self.paths = [str(path) for path in found]
        if not self.paths:
            raise FileNotFoundError(f"no file matches {pattern}")
        counts = [pq.read_metadata(path).num_rows for path in found]
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self.keys = (
            f"(SELECT {', '.join(map(_quoted, keys))}, file_index, file_row_number"
            " FROM read_parquet($files, hive_partitioning = false))"
        )

    def numbers(self, place_W: np.ndarray) -> np.ndarray:
        """The numbers of rows that a query over `keys` gave as PLACE."""
        place_W = np.asarray(place_W, np.int64)
        return self._starts[place_W >> 32] + (place_W & 0xFFFFFFFF)

    @property
    def count(self) -> int:
        return int(self._ends[-1])

    def rows(self, row_W: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The rows of these numbers, which must rise. Each file is opened once, and only if it holds one of them."""
        parts = []
        bound = np.searchsorted(row_W, self._ends)
        for path, low, high, start in zip(self.paths, np.concatenate([[0], bound]), bound, self._starts):
            if low < high:
                table = pq.read_table(path, columns=list(columns), partitioning=None)
                own_W = row_W[low:high] - start
                parts.append(table if len(own_W) == len(table) else table.take(pa.array(own_W)))
        if not parts:
            return pq.read_schema(self.paths[0]).empty_table().select(list(columns))
        return pa.concat_tables(parts)


def _asof(
    connection: duckdb.DuckDBPyConnection, entity: pa.Table, stamp: str, view: FeatureView, features: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """The feature columns [N] of one view, null where an entity row has no row at or before it, or an expired one."""
    source = view.batch_source
    assert source is not None
    names = {e.name: e.name for e in view.entity_columns} | view.projection.join_key_map
    files = _Files(source, [*names, source.timestamp_field])
    connection.register("asked", entity.select([*names.values(), stamp]).append_column(_ROW, _numbers(len(entity))))
    time = _quoted(source.timestamp_field)
    same = " AND ".join(f"asked.{_quoted(asked)} = k.{_quoted(own)}" for own, asked in names.items())
    alive = f"AND asked.{_quoted(stamp)} <= k.{time} + INTERVAL {view.ttl.total_seconds()} SECOND" if view.ttl else ""
    pairs = connection.execute(
        f"""SELECT {_ROW}, {PLACE} AS won FROM asked ASOF JOIN {files.keys} k
        ON {same} AND asked.{_quoted(stamp)} >= k.{time} WHERE true {alive}""",
        {"files": files.paths},
    ).fetchnumpy()
    connection.unregister("asked")
    # Number the rows that won from 0: a table of flags over all rows is cheaper than a sort.
    won_P = files.numbers(pairs["won"])
    won_R = np.zeros(files.count, bool)
    won_R[won_P] = True
    place_N = np.zeros(len(entity), np.int64)
    known_N = np.zeros(len(entity), bool)
    place_N[pairs[_ROW]] = (np.cumsum(won_R) - 1)[won_P]
    known_N[pairs[_ROW]] = True
    table = files.rows(np.flatnonzero(won_R), features)
    place = pa.array(place_N, mask=~known_N)
    pieces = [place[at : at + PIECE] for at in range(0, len(place), PIECE)]
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        columns = {name: table[name].combine_chunks() for name in features}
        taken = {name: pool.map(column.take, pieces) for name, column in columns.items()}
        return {name: pa.chunked_array(parts, columns[name].type) for name, parts in taken.items()}


def _numbers(count: int) -> pa.Array:
    return pa.array(np.arange(count))


def _parquet(source: DataSource | None) -> bool:
    return isinstance(source, FileSource) and isinstance(source.file_format, ParquetFormat)


def _plain(view: FeatureView) -> bool:
    source = view.batch_source
    return _parquet(source) and not (source.field_mapping or source.created_timestamp_column)  # type: ignore[union-attr]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
