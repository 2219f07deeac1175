"""Faults of the object store and of its lock, injected between boto3 and a real HTTP server."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
from fault import cases, fault
from s3_proxy import Trouble, proxy

from releases.bucket import S3Config
from releases.channels import promote, read_channel
from releases.lock_service import PostgresLock
from releases.manifest import load_release, released
from releases.object_store import ConflictError, StoreError
from releases.s3 import S3Store
from tests.releases.conftest import publish_small, write_files
from tests.releases.s3_servers import MOTO_KEYS, client, moto_server, no_postgres, postgres, use

STACK, SERVER = contextlib.ExitStack(), dict[str, str]()
REPOSITORY = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def troubled(tmp_path: Path, *, timeout_s: float = 10.0, attempts: int = 4):
    """A store behind the proxy, the list of troubles, and the server itself: one for all faults, a bucket for each."""
    if "endpoint" not in SERVER:
        SERVER["endpoint"] = STACK.enter_context(moto_server(Path(STACK.enter_context(tempfile.TemporaryDirectory()))))
        atexit.register(STACK.close)
    real = SERVER["endpoint"]
    with proxy(real) as (endpoint, troubles), pytest.MonkeyPatch.context() as patch:
        use(patch, endpoint, MOTO_KEYS)
        bucket = f"faults-{uuid.uuid4().hex}"
        client(real, MOTO_KEYS).create_bucket(Bucket=bucket)
        config = S3Config(bucket=bucket, prefix="p", attempts=attempts, timeout_s=timeout_s)
        yield S3Store(config, cache=tmp_path / "copies"), troubles, real


@fault(area="releases", injection="two 500s for every upload of the model", expected="retried; one whole release")
def s3_answers_500(tmp_path: Path) -> str:
    with troubled(tmp_path) as (store, troubles, _):
        troubles.append(Trouble(method="PUT", key="model.safetensors", act="500 InternalError", times=2))
        release_id = publish_small(store, write_files(tmp_path / "f", 1))
        load_release(store, release_id)
        assert released(store) == [release_id] and troubles[0].done == 2
        return "published after two retries"


@fault(
    area="releases",
    injection="503 SlowDown for the manifest until the client gives up",
    expected="an error that says what to do, nothing visible; the next publish completes it",
)
def s3_answers_503_for_long(tmp_path: Path) -> str:
    with troubled(tmp_path, attempts=2) as (store, troubles, _):
        files = write_files(tmp_path / "f", 1)
        troubles.append(Trouble(method="PUT", key="manifest.json", act="503 SlowDown", times=2))
        with pytest.raises(StoreError, match="fewer requests"):
            publish_small(store, files)
        assert released(store) == []
        release_id = publish_small(store, files)
        assert released(store) == [release_id]
        return "refused by name; invisible; whole after the next try"


@fault(area="releases", injection="an answer later than the time-out", expected="retried; the release loads")
def s3_is_slow(tmp_path: Path) -> str:
    with troubled(tmp_path, timeout_s=1.0) as (store, troubles, _):
        troubles.append(Trouble(method="PUT", key="items.parquet", act="wait 2.5"))
        release_id = publish_small(store, write_files(tmp_path / "f", 1))
        load_release(store, release_id)
        assert troubles[0].done == 1
        return "one time-out, then published"


@fault(
    area="releases",
    injection="the pointer is written and the answer lost; the client's retry gets 412",
    expected="counted as the promotion it was, once in the history",
)
def s3_answer_lost_after_the_pointer_moved(tmp_path: Path) -> str:
    with troubled(tmp_path) as (store, troubles, _):
        made = [publish_small(store, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2)]
        promote(store, made[0])
        troubles.append(Trouble(method="PUT", key="channels/production.json", act="cut after"))
        promote(store, made[1])
        channel = read_channel(store, "production")
        assert (channel.release_id, channel.previous) == (made[1], [made[0]]) and troubles[0].done == 1
        assert [h["release_id"] for h in channel.history] == made
        return "promoted once"


@fault(area="releases", injection="the connection cut in each upload's first try", expected="retried; nothing doubled")
def s3_cuts_connections(tmp_path: Path) -> str:
    with troubled(tmp_path) as (store, troubles, _):
        troubles.append(Trouble(method="PUT", key="/releases/", act="cut before", times=2))
        release_id = publish_small(store, write_files(tmp_path / "f", 1))
        assert store.children("releases") == [release_id] and troubles[0].done == 2
        load_release(store, release_id)
        return "published"


KILLED = """
import os, signal, sys
from pathlib import Path
from releases.bucket import S3Config
from releases.s3 import S3Store
from tests.releases.conftest import publish_small, write_files
root = Path(sys.argv[1])
store = S3Store(S3Config(bucket=sys.argv[2], prefix="p"), cache=root / "c2")
real, sent = store.bucket.upload, []
def dying(*args):
    if len(sent) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    sent.append(args); real(*args)
store.bucket.upload = dying
publish_small(store, write_files(root / "f", 1))
"""


@fault(
    area="releases",
    injection="SIGKILL of the publisher after three of six files",
    expected="no reader sees a release; the next publish completes it",
)
def publisher_killed_mid_upload(tmp_path: Path) -> str:
    with troubled(tmp_path) as (store, _, _):
        env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), store.config.bucket], env=env, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert released(store) == [] and len(store.children("releases")) == 1
        release_id = publish_small(store, write_files(tmp_path / "f", 1))
        assert released(store) == [release_id]
        return "half a release was there and invisible; completed"


@fault(
    area="releases",
    injection="five promoters of five releases at once",
    expected="every winner is in the history, every loser has an error",
)
def pointer_race_of_promoters(tmp_path: Path) -> str:
    with troubled(tmp_path) as (store, _, _):
        made = [publish_small(store, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in range(1, 6)]
        won, lost = [], []

        def race(release_id: str) -> None:
            try:
                promote(store, release_id)
                won.append(release_id)
            except ConflictError:
                lost.append(release_id)

        threads = [threading.Thread(target=race, args=(release_id,)) for release_id in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        channel = read_channel(store, "production")
        assert won and sorted([*won, *lost]) == made
        assert sorted([*channel.previous, channel.release_id]) == sorted(won)
        return "no move lost"


@fault(area="security", injection="400 ExpiredToken for every write", expected="an error that says: renew them")
def expired_credentials(tmp_path: Path) -> str:
    with troubled(tmp_path, attempts=2) as (store, troubles, _):
        troubles.append(Trouble(method="PUT", key="/p/", act="400 ExpiredToken", times=99))
        with pytest.raises(StoreError, match="renew them"):
            publish_small(store, write_files(tmp_path / "f", 1))
        troubles.clear()
        assert released(store) == []
        return "refused by name; nothing visible"


@fault(area="releases", injection="one byte of an object replaced in the bucket", expected="refused, production stays")
def flipped_byte_in_the_bucket(tmp_path: Path) -> str:
    with troubled(tmp_path) as (store, _, real):
        made = [publish_small(store, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2)]
        promote(store, made[0])
        s3, key = client(real, MOTO_KEYS), f"p/releases/{made[1]}/model/model.safetensors"
        data = bytearray(s3.get_object(Bucket=store.config.bucket, Key=key)["Body"].read())
        data[-7] ^= 1
        s3.put_object(Bucket=store.config.bucket, Key=key, Body=bytes(data))
        store.drop_copy(f"releases/{made[1]}")
        with pytest.raises(ValueError, match=r"model\.safetensors: expected sha256"):
            promote(store, made[1])
        assert read_channel(store, "production").release_id == made[0]
        return "refused by the file's name"


HOLDER = """
import sys, time
from releases.lock_service import PostgresLock
with PostgresLock(sys.argv[1]).held("x"):
    print("held", flush=True)
    time.sleep(600)
"""


@fault(
    area="releases",
    injection="SIGKILL of a process that holds the lock",
    expected="others wait while it lives, and go on when it is dead",
    needs=no_postgres,
)
def lock_holder_dies(tmp_path: Path) -> str:
    database = tmp_path / "db"
    database.mkdir()
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    with postgres(database) as url:
        command, env = [sys.executable, "-c", HOLDER, url], os.environ | {"PYTHONPATH": str(REPOSITORY)}
        holder = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"held\n"
        lock = PostgresLock(url, wait_s=1)
        with pytest.raises(ConflictError, match="another writer"), lock.held("x"):
            pass
        holder.kill()
        holder.wait()
        with PostgresLock(url).held("x") as still_held:
            still_held()
            killer = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            import psycopg

            with psycopg.connect(url, autocommit=True) as other:
                other.execute(killer)
            with pytest.raises(ConflictError, match="was lost"):
                still_held()
    with pytest.raises(StoreError, match="does not answer"), lock.held("x"):
        pass
    return "freed at once; a holder cut off learns it before it writes; no server, no write"


test_store_fault = cases(__name__)
