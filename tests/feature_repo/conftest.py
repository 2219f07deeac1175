"""Small random pathway and label tables with the exact columns that the pathways step writes, and profiles to test."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.repo_config import RepoConfig

from datasets.partitions import partition_path, write_partition
from feature_repo.profiles import LocalProfile
from feature_repo.store import apply
from feature_repo.training_set import LABEL_COLUMNS
from feature_repo.views import VIEW_COLUMNS
from tests.feature_repo.servers import postgres_server, redis_server

STATIC_FEATURES = 4
FIRST_DAY = date(2022, 4, 25)
DAYS = [FIRST_DAY + timedelta(days=i) for i in range(6)]
USERS, STRANGERS = range(40), range(900, 905)
STAMP, LIST = pa.timestamp("ms", "UTC"), pa.list_(pa.int64())


def end_of(day: date) -> datetime:
    """The end of a log day in Shanghai, where KuaiRand's days end."""
    return datetime(day.year, day.month, day.day, 16, tzinfo=UTC)


def write_table(path: Path, users: Sequence[int], stamps: Sequence[datetime], lists: Mapping[str, list]) -> None:
    columns = {name: pa.array(values, LIST) for name, values in lists.items()}
    keys = {"user_id": pa.array(users, pa.int64()), "event_timestamp": pa.array(stamps, STAMP)}
    write_partition(path, pa.table({**keys, **columns}))


def random_lists(
    rng: np.random.Generator, columns: Sequence[str], rows: int, length: int | None = None
) -> dict[str, list]:
    """Parallel lists: the same lengths in every column, some of them empty."""
    sizes = [length if length is not None else int(rng.integers(0, 9)) for _ in range(rows)]
    return {column: [rng.integers(0, 256, size).tolist() for size in sizes] for column in columns}


def write_views(
    features: Path, day: date, keys: list[tuple[int, datetime]], seen: dict[int, list[int]], rng: np.random.Generator
) -> None:
    """A partition of each view. As in the real ones seen items only grow, and some users have no positive event."""
    for view, columns in VIEW_COLUMNS.items():
        rows = [(user, stamp) for user, stamp in keys if view != "user_positive" or user % 5]
        lists = random_lists(rng, columns, len(rows), STATIC_FEATURES if view == "user_static" else None)
        if view == "user_seen":
            for i, (user, _) in enumerate(rows):
                seen[user] = lists["seen_item_id"][i] = seen.get(user, []) + lists["seen_item_id"][i]
        users, stamps = [user for user, _ in rows], [stamp for _, stamp in rows]
        write_table(partition_path(features / view, day), users, stamps, lists)


def write_days(features: Path, rng: np.random.Generator) -> None:
    """Six days of views and labels. Users come and go; on the fourth day there are snapshots at two instants."""
    seen: dict[int, list[int]] = {}
    for i, day in enumerate(DAYS):
        users = sorted(rng.choice(USERS, 25, replace=False).tolist())
        instants = [end_of(day)] if i != 3 else [end_of(day) - timedelta(hours=5), end_of(day)]
        keys = [(user, instant) for user in users for instant in instants]
        write_views(features, day, keys, seen, rng)
        asked = sorted([*rng.choice(USERS, 20, replace=False).tolist(), *STRANGERS])
        before, after = end_of(day) - timedelta(days=1), end_of(day)
        # Just behind a snapshot, exactly on it, just before it: the last two are where a join goes wrong.
        offsets = [timedelta(milliseconds=1), timedelta(), timedelta(milliseconds=-1)]
        for folder, instant in (("labels", before), ("evaluation_labels", after)):
            stamps = [instant + offsets[user % 3] for user in asked]
            path = partition_path(features / folder, day)
            write_table(path, asked, stamps, random_lists(rng, LABEL_COLUMNS, len(asked)))


def newest(features: Path, view: str, until: datetime) -> dict[int, dict]:
    """The newest row of each user, straight from the partitions."""
    rows = [row for path in features.glob(f"{view}/dt=*/*.parquet") for row in pq.read_table(path).to_pylist()]
    rows = sorted((row for row in rows if row["event_timestamp"] <= until), key=lambda row: row["event_timestamp"])
    return {row["user_id"]: row for row in rows}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(features, feature_store), applied. Tests only add partitions that no other test reads."""
    base = tmp_path_factory.mktemp("feature_repo")
    write_days(base / "features", np.random.default_rng(1))
    apply(features=base / "features", feature_store=base / "store")
    return base / "features", base / "store"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherStores(LocalProfile):
    """The local profile with another online or offline store: one part of a profile tested by itself."""

    online: dict | None = None
    offline: dict | None = None

    def repo_config(self, feature_store: Path) -> RepoConfig:
        found = LocalProfile.repo_config(self, feature_store).model_dump(by_alias=True)
        changed = {"online_store": self.online, "offline_store": self.offline}
        return RepoConfig(**{**found, **{name: value for name, value in changed.items() if value}})


@pytest.fixture(scope="session")
def redis_address() -> Iterator[str]:
    """host:port of a Redis server of the test run's own."""
    with redis_server() as address:
        yield address


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of an empty database on a PostgreSQL server of the test run's own."""
    with postgres_server() as url:
        yield url


_PROJECTS = itertools.count(1)


@pytest.fixture(params=["sqlite", "redis"])
def online_profile(request) -> LocalProfile:
    """A profile with each of the two online stores, empty."""
    if request.param == "sqlite":
        return LocalProfile()
    address = request.getfixturevalue("redis_address")
    online = {"type": "feature_repo.online_redis.RedisRowOnlineStore", "connection_string": address}
    return OtherStores(project=f"test{next(_PROJECTS)}", online=online)
