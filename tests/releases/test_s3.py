"""The S3 store: against moto (conditional writes) and OpenStack Swift (501 for them; signatures checked)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from releases.bucket import S3Config
from releases.channels import promote, read_channel, rollback
from releases.collect import Keep, collect, plan
from releases.lock_service import PostgresLock
from releases.manifest import MANIFEST, load_release, released
from releases.object_store import ConflictError, StoreError, digest_bytes
from releases.s3 import S3Store
from releases.stores import open_store
from tests.releases.conftest import publish_small, write_files
from tests.releases.s3_servers import (
    BUCKET,
    MOTO_KEYS,
    SWIFT_KEYS,
    client,
    moto_server,
    no_postgres,
    no_swift,
    postgres,
    swift_server,
    use,
)


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    with moto_server(tmp_path_factory.mktemp("moto")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def swift(tmp_path_factory):
    if missing := no_swift():
        pytest.skip(missing)
    with swift_server(tmp_path_factory.mktemp("swift")) as endpoint:
        yield endpoint


@pytest.fixture
def s3(moto, monkeypatch, tmp_path, request) -> S3Store:
    use(monkeypatch, moto, MOTO_KEYS)
    prefix = request.node.name.replace("[", "-").strip("]")
    return S3Store(S3Config(bucket=BUCKET, prefix=prefix, part_bytes=5 << 20), cache=tmp_path / "copies")


def test_the_whole_life_of_releases(s3, tmp_path):
    made = [publish_small(s3, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2, 3)]
    assert publish_small(s3, write_files(tmp_path / "again", 1), day="2022-05-01", code_commit="other") == made[0]
    assert released(s3) == made and s3.children("releases") == made
    for release_id in made:
        promote(s3, release_id)
    assert rollback(s3).release_id == made[1]
    with pytest.raises(ConflictError):
        s3.compare_and_swap("channels/production.json", b"{}", digest_bytes(b"what was there before"))
    keep = Keep(days=1, rollbacks=1, hours=1)
    found = plan(s3, keep)
    assert found.remove == {}  # all were written just now


def test_multipart_keeps_every_byte_and_the_copy_is_fetched_again_when_damaged(s3, tmp_path):
    data = bytes(range(256)) * (12 << 12)  # 12 MiB: three parts
    (tmp_path / "large").write_bytes(data)
    s3.put_file("tree/a/large", tmp_path / "large")
    listed = s3.objects("tree")
    assert [(o.key, o.size) for o in listed] == [("a/large", len(data))]
    copy = s3.local("tree") / "a" / "large"
    assert copy.read_bytes() == data
    release_id = publish_small(s3, write_files(tmp_path / "r", 1))
    folder, _ = load_release(s3, release_id)
    (folder / "items.parquet").write_bytes(b"rotten")
    assert load_release(s3, release_id)[0] == folder  # fetched once more
    s3.put_file(f"releases/{release_id}/items.parquet", tmp_path / "r" / "model" / "config.json")
    s3.drop_copy(f"releases/{release_id}")
    with pytest.raises(ValueError, match=r"items\.parquet: expected"):
        load_release(s3, release_id)


def test_a_half_published_release_is_invisible_and_completed_by_the_next_try(s3, tmp_path, monkeypatch):
    files, real, sent = write_files(tmp_path / "r", 1), s3.bucket.upload, []

    def failing(key: str, path: Path, sha256: str) -> None:
        if len(sent) == 3:
            raise StoreError("the network went away")
        sent.append(key)
        real(key, path, sha256)

    monkeypatch.setattr(s3.bucket, "upload", failing)
    with pytest.raises(StoreError, match="network"):
        publish_small(s3, files)
    assert released(s3) == [] and len(s3.children("releases")) == 1
    before = list(sent)
    sent.clear()
    sent.append("three more are allowed")
    monkeypatch.setattr(s3.bucket, "upload", lambda *a: (sent.append(a[0]), real(*a)))
    release_id = publish_small(s3, files)
    assert released(s3) == [release_id] and not set(before) & set(sent)  # what was there was not sent again


def test_racing_promoters_lose_no_move(s3, tmp_path):
    made = [publish_small(s3, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2, 3, 4)]
    promote(s3, made[0])
    won, lost = [], []

    def race(release_id: str) -> None:
        try:
            promote(s3, release_id)
            won.append(release_id)
        except ConflictError:
            lost.append(release_id)

    threads = [threading.Thread(target=race, args=(release_id,)) for release_id in made[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    channel = read_channel(s3, "production")
    assert sorted([*won, *lost]) == made[1:] and won
    assert sorted([*channel.previous, channel.release_id]) == sorted([made[0], *won])  # every winner is in the history


def test_collection_on_s3(s3, tmp_path):
    made = [publish_small(s3, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2, 3)]
    promote(s3, made[2])
    client(s3.bucket.client.meta.endpoint_url, MOTO_KEYS).delete_object(
        Bucket=BUCKET, Key=f"{s3.config.prefix}/releases/{made[1]}/{MANIFEST}"
    )
    import datetime as dt

    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    found = plan(s3, Keep(days=1), later)
    assert (list(found.remove), list(found.half)) == ([made[0]], [made[1]])
    with pytest.raises(ValueError, match="look at it first"):
        collect(s3, "", Keep(days=1), later)
    assert collect(s3, found.token, Keep(days=1), later) == made[:2]
    assert s3.children("releases") == [made[2]] and read_channel(s3, "production").release_id == made[2]


def test_addresses(moto, monkeypatch, tmp_path):
    use(monkeypatch, moto, MOTO_KEYS)
    monkeypatch.setenv("ONEREC_STORE", f"s3://{BUCKET}/some/where")
    store = open_store(tmp_path, source="logs")
    assert isinstance(store, S3Store) and store.config.prefix == "some/where/logs" and store.conditional
    monkeypatch.setenv("ONEREC_STORE", "http://x")
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        open_store(tmp_path, source="logs")
    with pytest.raises(ValueError, match="5 MiB"):
        S3Config(bucket=BUCKET, part_bytes=1)
    with pytest.raises(StoreError, match="NoSuchBucket"):
        S3Store(S3Config(bucket="nowhere", attempts=1), cache=tmp_path)


def test_a_store_without_conditional_writes_needs_the_lock_service(swift, monkeypatch, tmp_path):
    use(monkeypatch, swift, SWIFT_KEYS)
    config = S3Config(bucket=BUCKET, prefix="refused", part_bytes=5 << 20)
    bare = S3Store(config, cache=tmp_path / "copies")
    assert not bare.conditional and "501" in bare.why
    files = write_files(tmp_path / "r", 1)
    with pytest.raises(StoreError, match="ONEREC_LOCK"):
        publish_small(bare, files)
    assert bare.children("releases") == []  # refused before anything was sent
    if missing := no_postgres():
        pytest.skip(missing)
    (tmp_path / "db").mkdir()
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    with postgres(tmp_path / "db") as url:
        locked = S3Store(config, cache=tmp_path / "copies", lock=PostgresLock(url, wait_s=2))
        first = publish_small(locked, files)
        second = publish_small(locked, write_files(tmp_path / "s", 2), day="2022-05-06")
        promote(locked, first)
        promote(locked, second)
        assert rollback(locked).release_id == first
        name = f"{BUCKET}/refused/channels/production.json"
        with PostgresLock(url).held(name), pytest.raises(ConflictError, match="another writer has held"):
            promote(locked, second)
        assert read_channel(locked, "production").release_id == first
    with pytest.raises(StoreError, match="does not answer"):
        promote(locked, second)


def test_a_wrong_secret_is_refused_by_name(swift, monkeypatch, tmp_path):
    use(monkeypatch, swift, (SWIFT_KEYS[0], "wrong"))
    with pytest.raises(StoreError, match=r"SignatureDoesNotMatch|AccessDenied") as refused:
        S3Store(S3Config(bucket=BUCKET, attempts=1), cache=tmp_path).get("channels/production.json")
    assert "wrong" not in str(refused.value)
