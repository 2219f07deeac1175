"""The Feast store of one source: register the definitions, open it, fill the online store for an explicit interval.

    apply(features=features, feature_store=feature_store)
    materialize(features=features, feature_store=feature_store, start=datetime(2022, 5, 5, tzinfo=UTC), end=...)

Below `feature_store/`: `registry.db` (definitions), `online.db` (SQLite, the newest row of each user) and
`materialized.json` (our own record of the intervals that were filled). Offline reads go through DuckDB: Feast's `file`
store drops rows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from feast import FeatureStore
from feast.repo_config import RegistryConfig, RepoConfig

from datasets.errors import DataError
from feature_repo.entities import USER
from feature_repo.services import onerec_v1
from feature_repo.sources import TIMESTAMP, source_of
from feature_repo.views import VIEW_COLUMNS, feature_views

PROJECT = "onerec"
REGISTRY, ONLINE, RECORD = "registry.db", "online.db", "materialized.json"
WRITE_BATCH = 4096  # users a transaction of the online store: bounds memory, and what a killed write leaves undone


def apply(*, features: Path, feature_store: Path) -> FeatureStore:
    """Register entity, views and service for the tables below `features`; idempotent. Returns the open store."""
    feature_store.mkdir(parents=True, exist_ok=True)
    store = _store(feature_store)
    views = feature_views(features)
    with quiet():
        store.apply([USER, *views, onerec_v1(views)])
    # Write-ahead log: a server goes on reading while a day is being written, instead of meeting a locked file.
    with contextlib.closing(sqlite3.connect(feature_store / ONLINE)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return store


def open_store(features: Path, feature_store: Path) -> FeatureStore:
    """The store as the last `apply` left it.

    Raises DataError when there is none, or when it was applied for the tables of another folder.
    """
    if not (feature_store / REGISTRY).is_file():
        raise DataError(
            f"{feature_store} holds no {REGISTRY}: run the pathways step, it applies the feature definitions"
        )
    store = _store(feature_store)
    for view in store.list_feature_views():
        if (found := getattr(view.batch_source, "path", None)) != (wanted := source_of(features, view.name).path):
            raise DataError(
                f"{feature_store} was applied for {found}, not for {wanted}: apply it again for this folder"
            )
    return store


def materialize(*, features: Path, feature_store: Path, start: datetime, end: datetime) -> dict[str, Any]:
    """Write the newest row of each user with a time stamp in [start, end] into the online store; record the interval.

    The online store never goes back in time: when a later interval was filled before, everything up to its end is
    written again behind this one. Returns {"start", "end", "online_until", "users": {view: users in [start, end]}}.
    Raises DataError for times without a zone, an empty interval, one that ends in the future or one without any row.
    """
    if start.tzinfo is None or end.tzinfo is None:
        raise DataError(f"the interval {start} to {end} has no time zone: give both ends in UTC")
    if start >= end:
        raise DataError(
            f"the interval {start.isoformat()} to {end.isoformat()} is empty: its start must lie before its end"
        )
    if end > (now := datetime.now(UTC)):
        raise DataError(
            f"the interval ends at {end.isoformat()}, in the future (it is {now.isoformat()}): give a day that is over"
        )
    store = open_store(features, feature_store)
    users = {view: _users(features, view, start, end) for view in VIEW_COLUMNS}
    if not users["user_seen"]:
        raise DataError(
            f"no feature row between {start.isoformat()} and {end.isoformat()}: run the pathways step of these days"
        )
    record = _read_record(feature_store)
    until = max([end, *(datetime.fromisoformat(interval["end"]) for interval in record)])
    with quiet():
        store.materialize(start, until)
    done = {"start": _utc(start), "end": _utc(end)}
    _write_record(feature_store, [*(interval for interval in record if interval != done), done])
    return {**done, "online_until": _utc(until), "users": users}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Feast prints on every call (banners, bars, deprecations inside its dependencies); errors still rise.

    The rest of the process is silenced with it, so nothing of ours is called inside.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _store(feature_store: Path) -> FeatureStore:
    folder = feature_store.resolve()
    return FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            # 0: the cached registry never expires. It changes by `apply`, and whoever serves starts anew after one.
            registry=RegistryConfig(path=str(folder / REGISTRY), cache_ttl_seconds=0),
            online_store={"type": "sqlite", "path": str(folder / ONLINE)},
            offline_store={"type": "duckdb"},
            materialization={"online_write_batch_size": WRITE_BATCH},
            entity_key_serialization_version=3,
        )
    )


def _users(features: Path, view: str, start: datetime, end: datetime) -> int:
    """How many users have a row in the interval."""
    path = source_of(features, view).path
    with duckdb.connect() as connection:
        try:
            (count,) = connection.execute(
                f"SELECT count(DISTINCT user_id) FROM read_parquet(?) WHERE {TIMESTAMP} BETWEEN ? AND ?",
                [path, start, end],
            ).fetchone()  # type: ignore[misc]
        except duckdb.IOException:
            raise DataError(f"there is no partition at {path}: run the pathways step of these days") from None
    return count


def _read_record(feature_store: Path) -> list[dict[str, str]]:
    path = feature_store / RECORD
    return json.loads(path.read_text())["intervals"] if path.exists() else []


def _write_record(feature_store: Path, intervals: list[dict[str, str]]) -> None:
    staged = feature_store / f".{RECORD}.{os.getpid()}"
    with staged.open("w") as file:
        file.write(json.dumps({"intervals": intervals}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    staged.replace(feature_store / RECORD)


def _utc(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()
