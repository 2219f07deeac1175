"""The cluster profile against real servers: PostgreSQL registry, Redis online, Spark offline; and how it is chosen."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from datasets.errors import DataError
from feature_repo import training_set
from feature_repo.online import OnlineFeatures
from feature_repo.profiles import ClusterProfile, LocalProfile, profile_from_environment
from feature_repo.push import LiveEvent, LiveEvents
from feature_repo.services import MODEL_VERSIONS, SERVICE, feature_services
from feature_repo.store import apply, materialize, open_store
from feature_repo.training_set import FEATURE_COLUMNS
from feature_repo.views import LIVE_VIEW, VIEW_COLUMNS, feature_views
from tests.feature_repo.conftest import DAYS, STRANGERS, USERS, end_of

REGISTRY = "postgresql+psycopg://user:secret@db/feast"


def test_one_setting_chooses_the_profile():
    assert profile_from_environment({}) == LocalProfile()
    cluster = {"ONEREC_FEATURE_PROFILE": "cluster", "ONEREC_FEATURE_REGISTRY": REGISTRY}
    with pytest.raises(DataError, match="needs ONEREC_FEATURE_REDIS, for example host:6379"):
        profile_from_environment(cluster)
    cluster["ONEREC_FEATURE_REDIS"] = "redis:6379,password=hush"
    found = profile_from_environment({**cluster, "ONEREC_FEATURE_PROJECT": "shop"})
    assert found == ClusterProfile(registry=REGISTRY, redis="redis:6379,password=hush", project="shop")
    assert "secret" not in repr(found) and "hush" not in repr(found)
    assert "redis_type" not in found.repo_config(Path("store")).online_store.model_dump(exclude_unset=True)
    found = profile_from_environment({**cluster, "ONEREC_FEATURE_SENTINEL": "features"})
    online = found.repo_config(Path("store")).online_store
    assert (online.redis_type, online.sentinel_master) == ("redis_sentinel", "features")
    with pytest.raises(DataError, match="'moon': use one of local, cluster"):
        profile_from_environment({"ONEREC_FEATURE_PROFILE": "moon"})
    with pytest.raises(DataError, match="'a-b': a project is letters"):
        profile_from_environment({"ONEREC_FEATURE_PROJECT": "a-b"})


def test_a_service_for_each_model_version(tmp_path, monkeypatch):
    """A new version is one line; its name carries the version, and the older one stays."""
    monkeypatch.setitem(MODEL_VERSIONS, "onerec_v2", ("user_static", "user_seen"))
    services = {s.name: s for s in feature_services(feature_views(tmp_path, LocalProfile()))}
    assert list(services) == [SERVICE, "onerec_v2"]
    assert [p.name for p in services["onerec_v2"].feature_view_projections] == ["user_static", "user_seen"]
    assert services["onerec_v2"].tags == {"model_version": "v2"}
    assert LIVE_VIEW not in MODEL_VERSIONS[SERVICE]  # no model is trained on what only serving sees
    store = apply(features=tmp_path / "features", feature_store=tmp_path / "store", profile=LocalProfile())
    assert sorted(s.name for s in store.list_feature_services()) == sorted(services)


@pytest.fixture(scope="module")
def cluster(folders, tmp_path_factory, redis_address, postgres_url) -> dict:
    """A store of the cluster profile, applied and materialized up to the fifth day. Spark runs in this process."""
    if not shutil.which("java"):
        pytest.skip("no java on the path: install openjdk-17-jre-headless for Spark")
    pytest.importorskip("pyspark")
    profile = ClusterProfile(
        registry=postgres_url, redis=f"{redis_address},db=1", spark_master="local[1]", project="cluster_test"
    )
    where = {"features": folders[0], "feature_store": tmp_path_factory.mktemp("cluster"), "profile": profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
            get_spark_session_or_start_new_with_repoconfig as started,
        )

        session = started(profile.repo_config(where["feature_store"]).offline_store)
        session.conf.set("spark.sql.shuffle.partitions", "1")  # 200 tasks a join are for clusters
        session.conf.set("spark.sql.codegen.wholeStage", "false")  # nor is compiling each query worth it for a few rows
        apply(**where)
        materialize(**where, start=end_of(DAYS[0]).replace(hour=0), end=end_of(DAYS[4]))
    yield where
    session.stop()


def test_spark_joins_what_duckdb_joins(cluster, folders):
    """The training set through Feast's Spark store equals that through ours, row by row."""
    import pyarrow.parquet as pq

    from datasets.partitions import PART, partition_path

    labels = pq.read_table(partition_path(folders[0] / "labels", DAYS[4]) / PART)
    ours = training_set._history(labels, open_store(*folders))
    spark = training_set._history(labels, open_store(**cluster))
    assert len(spark) == len(labels)
    for name in FEATURE_COLUMNS:
        assert spark[name].to_pylist() == ours[name].to_pylist(), name


def test_the_cluster_serves_what_the_local_profile_serves(cluster, folders, tmp_path):
    local = {"features": folders[0], "feature_store": tmp_path / "store", "profile": LocalProfile()}
    apply(**local)
    materialize(**local, start=end_of(DAYS[0]).replace(hour=0), end=end_of(DAYS[4]))
    users = [*USERS, *STRANGERS]
    for ours, theirs in zip(OnlineFeatures(**local).read_many(users), OnlineFeatures(**cluster).read_many(users)):
        assert (ours.known, ours.feature_time_s) == (theirs.known, theirs.feature_time_s)
        for name in ("static", "short", "positive", "lifelong", "seen"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    LiveEvents(**cluster).push([LiveEvent(user_id=1, item_id=5, event_time=end_of(DAYS[4]))])
    assert OnlineFeatures(**cluster).read(1).short[-1, 0] == 5


def test_the_registry_is_in_postgres(cluster, tmp_path):
    store = open_store(**cluster)
    assert {view.name for view in store.list_feature_views()} == {*VIEW_COLUMNS, LIVE_VIEW}
    assert not list(cluster["feature_store"].glob("*.db"))
    with pytest.raises(DataError, match="apply it again"):
        open_store(tmp_path / "elsewhere", cluster["feature_store"], cluster["profile"])
    other = ClusterProfile(registry=cluster["profile"].registry, redis=cluster["profile"].redis, project="other")
    with pytest.raises(DataError, match="run the pathways step"):
        open_store(cluster["features"], cluster["feature_store"], other)
