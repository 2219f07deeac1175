"""Training and evaluation sets: what users were shown, joined with what was known of them just before.

    build(features=Path("var/simulated/features"), feature_store=..., day=date(2022, 5, 5), kind="training")

`labels/dt=D` becomes `training/dt=D`, `evaluation_labels/dt=D` becomes `evaluation/dt=D`. The join is Feast's: of each
view the newest row at or before the time stamp of the label row, never a later one. Nobody is lost: a user of whom
nothing was known has empty lists, and static codes of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore

from datasets.errors import DataError
from datasets.partitions import PART, partition_days, partition_path, write_partition
from feature_repo.profiles import Profile
from feature_repo.services import SERVICE
from feature_repo.sources import TIMESTAMP
from feature_repo.store import open_store, quiet
from feature_repo.views import VIEW_COLUMNS

LABEL_TABLES = {"training": "labels", "evaluation": "evaluation_labels"}
GROUP_ROWS = 4096  # of a row group, which is what training reads at a time: benchmarks/features/row_groups.md
JOIN_ROWS = 1 << 16  # label rows that are joined at a time: their features are in memory
LABEL_COLUMNS = ("item_id", "label", "label_known", "play_ms", "duration_ms")
_LIST = pa.list_(pa.int64())
_KEYS = [pa.field("user_id", pa.int64()), pa.field(TIMESTAMP, pa.timestamp("ms", "UTC"))]
LABELS_SCHEMA = pa.schema([*_KEYS, *(pa.field(c, _LIST) for c in LABEL_COLUMNS)])
FEATURE_COLUMNS = [column for columns in VIEW_COLUMNS.values() for column in columns]
SCHEMA = pa.schema([*LABELS_SCHEMA, *(pa.field(c, _LIST) for c in FEATURE_COLUMNS)])
"""A row of a training or evaluation set. Every list is oldest first."""


def build(
    *,
    features: Path,
    feature_store: Path,
    day: date,
    kind: Literal["training", "evaluation"] = "training",
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Write the set of one day and return the manifest of its partition, counts included.

    Rows keep the order of the label rows. Raises DataError when the labels or the feature definitions are missing.
    """
    path = partition_path(features / LABEL_TABLES[kind], day)
    if not (path / PART).is_file():
        raise DataError(f"{path} is missing: run the pathways step of {day} before its {kind} set")
    labels = pq.read_table(path / PART, columns=LABELS_SCHEMA.names).cast(LABELS_SCHEMA)
    counts = {
        "users_without_history": 0,
        "impressions": sum(len(chunk.flatten()) for chunk in labels["item_id"].chunks),
    }
    pieces = _pieces(labels, features, feature_store, day, profile, counts)
    return write_partition(partition_path(features / kind, day), pieces, counts=counts, group_rows=GROUP_ROWS)


def _pieces(
    labels: pa.Table, features: Path, feature_store: Path, day: date, profile: Profile | None, counts: dict[str, int]
) -> Iterator[pa.Table]:
    """The set in pieces of `GROUP_ROWS`; counts the rows without history as it goes."""
    store = open_store(features, feature_store, profile) if len(labels) else None
    if store is None:
        yield SCHEMA.empty_table()
        return
    for low in range(0, len(labels), JOIN_ROWS):
        asked = labels.slice(low, JOIN_ROWS)
        history = _history(asked, store)
        zeros = dict.fromkeys(FEATURE_COLUMNS, 0) | {"static_codes": _static_length(features, day)}
        counts["users_without_history"] += history["seen_item_id"].null_count
        for at in range(0, len(asked), GROUP_ROWS):
            part, own = history.slice(at, GROUP_ROWS), asked.slice(at, GROUP_ROWS)
            columns = {name: _filled(part[name], count) for name, count in zeros.items()}
            whole = pa.table({**dict(zip(own.column_names, own.columns)), **columns})
            yield whole.select(SCHEMA.names).cast(SCHEMA)


def _history(labels: pa.Table, store: FeatureStore) -> pa.Table:
    """The feature columns for each label row, in the order of the label rows; null where nothing was known."""
    keys = labels.select(["user_id", TIMESTAMP]).to_pandas()
    keys["label_row"] = np.arange(len(keys))
    with quiet():
        found = store.get_historical_features(entity_df=keys, features=store.get_feature_service(SERVICE)).to_arrow()
    if not np.array_equal(found["label_row"].to_numpy(), keys["label_row"]):
        found = found.sort_by("label_row")  # Spark gives any order
    # Feast's offline stores differ in what they do with rows that match nothing; losing one would shift all behind it.
    assert np.array_equal(found["label_row"].to_numpy(), keys["label_row"]), "the join lost or repeated label rows"
    return found


def _filled(column: pa.ChunkedArray, zeros: int) -> pa.Array:
    """The lists with nulls replaced by `zeros` zeros."""
    lists = column.combine_chunks().cast(_LIST)
    if not lists.null_count:
        return lists
    known = lists.is_valid().to_numpy(zero_copy_only=False)
    lengths = lists.value_lengths().fill_null(zeros).to_numpy()
    values = np.zeros(lengths.sum(), np.int64)
    values[np.repeat(known, lengths)] = lists.flatten().to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), pa.array(values))


def _static_length(features: Path, day: date) -> int:
    """How many static codes a user has: that of the newest users that are known on `day`, else of the oldest."""
    days = [d for d in partition_days(features / "user_static") if pq.read_metadata(_static(features, d)).num_rows]
    if not days:
        raise DataError(f"{features / 'user_static'} holds no row: run the pathways step of {day}")
    newest = max((d for d in days if d <= day), default=days[0])
    return len(pq.read_table(_static(features, newest), columns=["static_codes"])["static_codes"][0])


def _static(features: Path, day: date) -> Path:
    return partition_path(features / "user_static", day) / PART
