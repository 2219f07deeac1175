"""The Feast store of one source: register the definitions, open it, fill the online store for an explicit interval.

    apply(features=features, feature_store=feature_store)
    materialize(features=features, feature_store=feature_store, start=datetime(2022, 5, 5, tzinfo=UTC), end=...)

Where registry, online and offline store are is the profile's business (feature_repo/profiles.py); without one given,
the environment chooses. `feature_store/materialized.json` is our own record of the intervals that were filled: Feast
keeps watermarks of its own, which a backfill would make wrong, and nothing reads them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from feast import FeatureStore
from feast.errors import FeatureServiceNotFoundException, FeatureViewNotFoundException

from datasets.errors import DataError
from datasets.partitions import PART
from feature_repo.entities import USER
from feature_repo.profiles import REGISTRY, LocalProfile, Profile, profile_from_environment
from feature_repo.services import SERVICE, feature_services
from feature_repo.sources import TIMESTAMP, partitions_of
from feature_repo.views import VIEW_COLUMNS, feature_views

RECORD = "materialized.json"


def apply(*, features: Path, feature_store: Path, profile: Profile | None = None) -> FeatureStore:
    """Register entity, views and services for the tables below `features`; idempotent. Returns the open store."""
    profile = profile or profile_from_environment()
    feature_store.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(config=profile.repo_config(feature_store))
    views = feature_views(features, profile)
    with quiet():
        store.apply([USER, *views, *feature_services(views)])
    return store


def open_store(features: Path, feature_store: Path, profile: Profile | None = None) -> FeatureStore:
    """The store as the last `apply` left it.

    Raises DataError when there is none, or when it was applied for the tables of another folder.
    """
    profile = profile or profile_from_environment()
    if isinstance(profile, LocalProfile) and not (feature_store / REGISTRY).is_file():
        raise DataError(
            f"{feature_store} holds no {REGISTRY}: run the pathways step, it applies the feature definitions"
        )
    with quiet():
        store = FeatureStore(config=profile.repo_config(feature_store))
    try:
        store.get_feature_service(SERVICE)
        views = [store.get_feature_view(name) for name in VIEW_COLUMNS]
    except (FeatureServiceNotFoundException, FeatureViewNotFoundException) as error:
        raise DataError(f"{error}: run the pathways step, it applies the feature definitions") from None
    for view in views:
        found, wanted = (getattr(s, "path", None) for s in (view.batch_source, profile.source(features, view.name)))
        if found != wanted:
            raise DataError(
                f"{feature_store} was applied for {found}, not for {wanted}: apply it again for this folder"
            )
    return store


def materialize(
    *, features: Path, feature_store: Path, start: datetime, end: datetime, profile: Profile | None = None
) -> dict[str, Any]:
    """Write the newest row of each user with a time stamp in [start, end] into the online store; record the interval.

    The online store never goes back in time: it keeps a stored row that is newer, whatever wrote it, and replaces one
    with the same time stamp (feature_repo/online_rows.py). So any day may be written again, in any order.
    Returns {"start", "end", "online_until", "users": {view: users in [start, end]}}.
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
    store = open_store(features, feature_store, profile)
    users = {view: _users(features, view, start, end) for view in VIEW_COLUMNS}
    if not users["user_seen"]:
        raise DataError(
            f"no feature row between {start.isoformat()} and {end.isoformat()}: run the pathways step of these days"
        )
    with quiet():
        store.materialize(start, end, feature_views=list(VIEW_COLUMNS))
    done = {"start": _utc(start), "end": _utc(end)}
    record = [*(interval for interval in _read_record(feature_store) if interval != done), done]
    _write_record(feature_store, record)
    until = max(datetime.fromisoformat(interval["end"]) for interval in record)
    return {**done, "online_until": _utc(until), "users": users}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Feast prints on every call (banners, bars, deprecations inside its dependencies); errors still rise.

    The rest of the process is silenced with it, so nothing of ours that speaks is called inside.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _users(features: Path, view: str, start: datetime, end: datetime) -> int:
    """How many users have a row in the interval."""
    path = f"{partitions_of(features, view)}/dt=*/{PART}"
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
