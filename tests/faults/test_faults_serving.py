"""Faults of what answers users: Redis fails over or changes its password, Triton crashes on load, the kernel kills."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fault import cases, fault

from feature_repo.online import OnlineFeatures
from feature_repo.store import apply, materialize
from kfp_components.digest import REPOSITORY
from kfp_components.lock import held
from kfp_components.step import run_step
from kfp_components.workspace import Workspace
from releases.channels import promote
from serving.client import RecommendClient
from serving.config import ServingConfig
from serving.controller import Controller
from serving.features import DEGRADED, FULL, STALE, FeatureReader
from serving.ports import free_ports
from serving.triton_server import TritonServer
from tests.feature_repo.conftest import DAYS, OtherStores, end_of, write_days
from tests.serving.conftest import build_world, publish_release

DAY, MASTER = "2022-05-05", "features"
CGROUPS = Path("/sys/fs/cgroup/memory")
pytestmark = pytest.mark.timeout(900)


def no_redis() -> str:
    return "" if shutil.which("redis-server") else "no redis-server on the path: install the package redis-server"


@contextlib.contextmanager
def redis(folder: Path, *options: str, sentinel: str = "") -> Iterator[tuple[int, subprocess.Popen]]:
    """A Redis server, or a Sentinel with this configuration; its port and its process."""
    (port,), folder = free_ports(1), folder / uuid.uuid4().hex
    folder.mkdir(parents=True)
    command = ["redis-server"]
    if sentinel:
        (folder / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{sentinel}\n")
        command += [str(folder / "sentinel.conf"), "--sentinel"]
    else:
        command += ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: cli(port, "ping") in ("PONG", "NOAUTH Authentication required."))
        yield port, server
    finally:
        server.kill()
        server.wait(10)


def cli(port: int, *words: str) -> str:
    done = subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True)
    return done.stdout.strip()


def until(true, seconds: float = 60.0) -> float:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - started


def filled(tmp_path: Path, online: dict) -> dict:
    """A store over this Redis, with five days of features materialized; the fields of OnlineFeatures."""
    where = {"features": tmp_path / "features", "feature_store": tmp_path / "store"}
    write_days(where["features"], np.random.default_rng(1))
    online = {"type": "feature_repo.online_redis.RedisRowOnlineStore", **online}
    where["profile"] = OtherStores(project=f"p{uuid.uuid4().hex[:8]}", online=online)
    apply(**where)
    materialize(**where, start=end_of(DAYS[0]) - timedelta(days=1), end=end_of(DAYS[4]))
    return where


@fault(area="features", needs=no_redis,
       injection="SIGKILL of the Redis master while it is read; Sentinel promotes the replica",
       expected="nobody gets an error: answers from the cache or without features until the replica serves the same rows; writes go on")  # fmt: skip
def redis_failover(tmp_path: Path) -> str:
    with contextlib.ExitStack() as stack:
        master, process = stack.enter_context(redis(tmp_path))
        replica, _ = stack.enter_context(redis(tmp_path, "--replicaof", "127.0.0.1", str(master)))
        until(lambda: "master_link_status:up" in cli(replica, "info", "replication"))
        watched = f"sentinel monitor {MASTER} 127.0.0.1 {master} 1\nsentinel down-after-milliseconds {MASTER} 500\n"
        watched += f"sentinel failover-timeout {MASTER} 3000"
        sentinel, _ = stack.enter_context(redis(tmp_path, sentinel=watched))
        until(lambda: f"slave0:ip=127.0.0.1,port={replica}" in cli(master, "info", "replication"))
        until(lambda: "num-slaves\n1" in cli(sentinel, "sentinel", "master", MASTER))
        online = {
            "connection_string": f"127.0.0.1:{sentinel}",
            "redis_type": "redis_sentinel",
            "sentinel_master": MASTER,
        }
        where = filled(tmp_path, online)
        reader = FeatureReader(
            OnlineFeatures(**where), timeout_s=0.25, cache_users=10, stale_s=3600, log=lambda _: None
        )
        reader.warm()
        users = [u for u in range(30) if reader.read([u])[0][1] == FULL][:5]
        before = {u: reader.read([u])[0][0] for u in users}
        until(lambda: cli(replica, "dbsize") == cli(master, "dbsize"))
        process.send_signal(signal.SIGKILL)
        # Writes the rows that are there once more: it must wait for the new master, and then go on.
        again = stack.enter_context(ThreadPoolExecutor(1)).submit(
            materialize, **where, start=end_of(DAYS[3]), end=end_of(DAYS[4])
        )
        started, kinds = time.monotonic(), set()
        while True:
            read = [reader.read([u])[0] for u in users]  # never raises
            kinds |= {kind for _, kind in read}
            if {kind for _, kind in read} == {FULL} and DEGRADED not in kinds and len(kinds) > 1:
                break
            assert time.monotonic() - started < 60, kinds
            time.sleep(0.1)
        seconds = time.monotonic() - started
        assert kinds == {FULL, STALE}
        for u, (found, _) in zip(users, read):
            assert found.seen.tolist() == before[u].seen.tolist() and np.array_equal(found.short, before[u].short)
        assert cli(sentinel, "sentinel", "get-master-addr-by-name", MASTER).split() == ["127.0.0.1", str(replica)]
        assert again.result()["users"]["user_seen"]
        materialize(**where, start=end_of(DAYS[4]), end=end_of(DAYS[5]))  # writers find the new master too
        assert any(OnlineFeatures(**where).read(u).feature_time_s > before[u].feature_time_s for u in users)
    return f"stale answers for {seconds:.0f} s, no error; same rows on the replica, a day written to it"


@fault(area="security", needs=no_redis,
       injection="the password of Redis is rotated, and connections with the old one are cut",
       expected="answers from the cache, no word of the password in the log; whoever has the new one reads")  # fmt: skip
def redis_password_rotated(tmp_path: Path) -> str:
    with redis(tmp_path, "--requirepass", "old-secret") as (port, _):
        where = filled(tmp_path, {"connection_string": f"127.0.0.1:{port},password=old-secret"})
        said: list[str] = []
        reader = FeatureReader(OnlineFeatures(**where), timeout_s=2, cache_users=10, stale_s=3600, log=said.append)
        reader.warm()
        user = next(u for u in range(30) if reader.read([u])[0][1] == FULL)
        for words in (("config", "set", "requirepass", "new-secret"), ("client", "kill", "type", "normal")):
            password = "new-secret" if words[0] == "client" else "old-secret"
            cli(port, "-a", password, "--no-auth-warning", *words)
        kinds = []
        until(lambda: kinds.append(reader.read([user])[0][1]) or kinds[-1] == STALE)
        assert said and "secret" not in "".join(said)
        online = {"type": "feature_repo.online_redis.RedisRowOnlineStore"}
        online["connection_string"] = f"127.0.0.1:{port},password=new-secret"
        where["profile"] = OtherStores(project=where["profile"].project, online=online)
        apply(**where)
        assert OnlineFeatures(**where).read(user).known
    return "stale answers, one line without the password; read again with the new one"


@fault(area="serving",
       injection="a release whose model ends with an error when Triton loads it; then SIGKILL of tritonserver itself",
       expected="the old release answers every request meanwhile; the serving process ends and says so, started again it serves")  # fmt: skip
def triton_crash_on_load(tmp_path: Path) -> str:
    world = build_world(tmp_path / "world")
    promote(world.store, world.release.name)
    broken, wrong = tmp_path / "broken.json", world.files["model/config.json"].read_text()
    broken.write_text(wrong.replace('"decoder_layers": ', '"decoder_layers": 1'))
    bad = publish_release(world.store, world.files | {"model/config.json": broken})
    now = int(end_of(DAYS[-1]).timestamp()) + 1
    answers: list[str] = []
    stop = threading.Event()
    where = {"features": world.features, "feature_store": world.feature_store, "log": tmp_path / "triton.log"}
    lines: list[str] = []
    with TritonServer(release=world.release, config=ServingConfig(threads=1), **where) as server:

        def ask() -> None:
            with RecommendClient(server.grpc_url, retries=0) as client:
                while not stop.is_set():
                    answers.append(client.recommend(1, 5, now_s=now).release_id)

        asking = threading.Thread(target=ask)
        asking.start()
        promote(world.store, bad.name)
        Controller(server, world.store, log=lines.append).step()
        count = len(answers)
        until(lambda: len(answers) > count + 5)
        stop.set()
        asking.join()
        assert set(answers) == {world.release.name} and f"{bad.name} refused" in lines[0], lines
    promote(world.store, world.release.name)
    command = [sys.executable, "-m", "serving.run", "--store", str(world.store.root), "--threads", "1"]
    command += [w for name, path in where.items() for w in (f"--{name.replace('_', '-')}", str(path))]
    for turn in range(2):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with RecommendClient(url) as client:
                assert client.recommend(1, 5, now_s=now).release_id == world.release.name
            if not turn:
                children = subprocess.run(
                    ["pgrep", "-P", str(process.pid), "tritonserver"], capture_output=True, text=True
                )
                subprocess.run(["kill", "-KILL", *children.stdout.split()], check=True)
                _, error = process.communicate(timeout=60)
                assert process.returncode == 1 and "tritonserver ended by itself" in error
        finally:
            process.terminate()
            process.wait(60)
    return f"{len(answers)} answers of the old release; ended by name, served again"


def no_cgroup() -> str:
    probe = CGROUPS / f"onerec-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"no memory cgroup may be made here ({error.strerror}); needs root and cgroup v1"
    return ""


@fault(area="data", needs=no_cgroup,
       injection="a step allocates more than its container may: the kernel's own out-of-memory kill, in a memory cgroup of 256 MiB",
       expected="SIGKILL, no outcome, the lock is free; with more memory the step is made whole")  # fmt: skip
def out_of_memory_kill_by_the_kernel(tmp_path: Path) -> str:
    w = Workspace(root=str(tmp_path / "var"), source="s")
    group = CGROUPS / f"onerec-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    code = f"""
import os
from pathlib import Path
from kfp_components.lock import held
from kfp_components.step import run_step
from kfp_components.workspace import Workspace
Path({str(group / "cgroup.procs")!r}).write_text(str(os.getpid()))
w = Workspace(root={w.root!r}, source="s")
def body(out, progress):
    (out / "model.txt").write_text("half")
    return {{"bytes": len(bytearray(os.urandom(1 << 20) * 1024))}}
with held(w.base / ".pipeline.lock", "the hungry step"):
    run_step(workspace=w, day={DAY!r}, step="align", inputs=[], rooms=("datasets/errors.py",), settings={{}}, body=body)
"""
    try:
        (group / "memory.limit_in_bytes").write_text(str(256 << 20))
        process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        _, error = process.communicate(timeout=120)
        control = (group / "memory.oom_control").read_text()
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
    assert process.returncode == -signal.SIGKILL, error
    kills = [line for line in control.splitlines() if line.startswith("oom_kill ")]
    assert kills == ["oom_kill 1"], control
    assert not w.outcome(DAY, "align").exists() and list(w.step_dir(DAY, "align").parent.glob(".align-*"))

    def body(out: Path, progress) -> dict:
        (out / "model.txt").write_text("whole")
        return {}

    with held(w.base / ".pipeline.lock", "the next run"):
        made = run_step(
            workspace=w, day=DAY, step="align", inputs=[], rooms=("datasets/errors.py",), settings={}, body=body
        )
    assert made.whole() and not list(w.step_dir(DAY, "align").parent.glob(".align-*"))
    return "killed by the kernel (oom_kill 1), half folder cleared, made whole"


test_fault = cases(__name__)
