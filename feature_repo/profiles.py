"""Where Feast keeps things: the local profile (one machine, no service) and the cluster profile, as typed Python.

    ONEREC_FEATURE_PROFILE=local      registry: a file         online: SQLite   offline: DuckDB      (the default)
    ONEREC_FEATURE_PROFILE=cluster    registry: PostgreSQL     online: Redis    offline: Spark

    profile_from_environment().repo_config(feature_store)

The cluster's addresses come from the environment and from nowhere else, because they carry passwords:
ONEREC_FEATURE_REGISTRY (postgresql+psycopg://user:password@host/database?sslmode=verify-full), ONEREC_FEATURE_REDIS
(host:port,ssl=true,socket_timeout=0.5,password=...), and, when Spark is not the one of the process,
ONEREC_FEATURE_SPARK (its master).
Several sources in one cluster are several projects: ONEREC_FEATURE_PROJECT.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feast import FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.repo_config import RepoConfig

from datasets.errors import DataError
from datasets.partitions import PART
from feature_repo.sources import TIMESTAMP, partitions_of

PROJECT = "onerec"
REGISTRY, ONLINE = "registry.db", "online.db"
WRITE_BATCH = 4096  # users a write to the online store: bounds memory, and what a killed write leaves undone


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalProfile:
    """Everything below one folder, `feature_store`."""

    project: str = PROJECT

    def repo_config(self, feature_store: Path) -> RepoConfig:
        folder = feature_store.resolve()
        return _config(
            self.project,
            registry={"path": str(folder / REGISTRY)},
            online={"type": "feature_repo.online_sqlite.SqliteRowOnlineStore", "path": str(folder / ONLINE)},
            offline={"type": "feature_repo.offline_duckdb.AsofDuckDBOfflineStore"},
        )

    def source(self, features: Path, view: str) -> DataSource:
        """The partitions of a view: a glob, absolute, which DuckDB resolves itself."""
        return FileSource(
            name=f"{view}_partitions",
            path=f"{partitions_of(features, view)}/dt=*/{PART}",
            file_format=ParquetFormat(),
            timestamp_field=TIMESTAMP,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterProfile:
    """PostgreSQL, Redis and Spark. `registry`: an SQLAlchemy URL; `redis`: Feast's connection string.

    `sentinel`: name of the master where `redis` names Sentinels, which find its successor when it dies."""

    registry: str = dataclasses.field(repr=False)
    redis: str = dataclasses.field(repr=False)
    sentinel: str = ""
    spark_master: str | None = None
    project: str = PROJECT

    def repo_config(self, feature_store: Path) -> RepoConfig:
        """`feature_store` holds nothing of Feast's here, only our record of what was materialized."""
        conf = {
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.execution.arrow.pyspark.enabled": "true",
            **({"spark.master": self.spark_master} if self.spark_master else {}),
        }
        return _config(
            self.project,
            registry={"registry_type": "sql", "path": self.registry},
            online={
                "type": "feature_repo.online_redis.RedisRowOnlineStore",
                "connection_string": self.redis,
                **({"redis_type": "redis_sentinel", "sentinel_master": self.sentinel} if self.sentinel else {}),
            },
            offline={"type": "spark", "spark_conf": conf},
        )

    def source(self, features: Path, view: str) -> DataSource:
        """The partitions of a view as one Spark path."""
        # Imported here: it needs PySpark, which a serving image does without.
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        path = f"{partitions_of(features, view)}/dt=*/{PART}"
        return SparkSource(name=f"{view}_partitions", path=path, file_format="parquet", timestamp_field=TIMESTAMP)


Profile = LocalProfile | ClusterProfile


def profile_from_environment(environment: Mapping[str, str] | None = None) -> Profile:
    """The profile that ONEREC_FEATURE_PROFILE names. Raises DataError for an unknown name or a missing address."""
    found = os.environ if environment is None else environment
    name, project = found.get("ONEREC_FEATURE_PROFILE", "local"), found.get("ONEREC_FEATURE_PROJECT", PROJECT)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", project):
        raise DataError(f"ONEREC_FEATURE_PROJECT is {project!r}: a project is letters, digits and underscores")
    makers: dict[str, Callable[[], Profile]] = {
        "local": lambda: LocalProfile(project=project),
        "cluster": lambda: ClusterProfile(
            registry=_address(found, "ONEREC_FEATURE_REGISTRY", "postgresql+psycopg://user:password@host/database"),
            redis=_address(found, "ONEREC_FEATURE_REDIS", "host:6379,password=..."),
            sentinel=found.get("ONEREC_FEATURE_SENTINEL", ""),
            spark_master=found.get("ONEREC_FEATURE_SPARK") or None,
            project=project,
        ),
    }
    if name not in makers:
        raise DataError(f"ONEREC_FEATURE_PROFILE is {name!r}: use one of {', '.join(makers)}")
    return makers[name]()


def _address(environment: Mapping[str, str], name: str, example: str) -> str:
    if not (value := environment.get(name)):
        raise DataError(f"the cluster profile needs {name}, for example {example}; mount it from a secret")
    return value


def _config(project: str, *, registry: dict[str, Any], online: dict[str, Any], offline: dict[str, Any]) -> RepoConfig:
    return RepoConfig(
        project=project,
        provider="local",
        # 0: the cached registry never expires. It changes by `apply`, and whoever serves starts anew after one.
        registry={**registry, "cache_ttl_seconds": 0},
        online_store=online,
        offline_store=offline,
        materialization={"online_write_batch_size": WRITE_BATCH},
        entity_key_serialization_version=3,
    )
