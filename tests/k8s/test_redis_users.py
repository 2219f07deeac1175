"""The Redis configuration of the cluster on a real Redis server: who may read, who may write, who may do neither."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.ports import free_ports
from tests.k8s.manifests import K8S


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if (binary := shutil.which("redis-server")) is None:
        pytest.skip("no redis-server on the path: install the package redis-server")
    folder: Path = tmp_path_factory.mktemp("redis")
    (secret,) = (
        s
        for s in yaml.safe_load_all((K8S / "base/serving/secrets.yaml").read_text())
        if s["metadata"]["name"] == "redis-users"
    )
    users = secret["spec"]["target"]["template"]["data"]["users.conf"]
    for name in ("reader", "writer", "probe"):
        users = users.replace(f"{{{{ .{name} | sha256sum }}}}", hashlib.sha256(f"{name}-word".encode()).hexdigest())
    assert "{{" not in users
    (folder / "users.conf").write_text(users)
    (free,) = free_ports(1)
    config = (K8S / "base/serving/redis.conf").read_text()
    config = config.replace("/run/secrets/redis", str(folder)).replace("dir /data", f"dir {folder}")
    config = config.replace("port 6379", f"port {free}").replace("bind * -::*", "bind 127.0.0.1")
    (folder / "redis.conf").write_text(config)
    server = subprocess.Popen([binary, str(folder / "redis.conf")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and server.poll() is None:
            try:
                as_user(free, "probe").ping()
                break
            except redis.ConnectionError:
                time.sleep(0.1)
        assert server.poll() is None, "redis-server refused the configuration"
        yield free
    finally:
        server.terminate()
        server.wait(20)


ONCE = Retry(NoBackoff(), 0)  # a refusal is an answer, not a trouble of the network


def as_user(port: int, name: str) -> redis.Redis:
    return redis.Redis(port=port, username=name, password=f"{name}-word", retry=ONCE)


def test_the_writer_writes_what_the_reader_reads(port: int) -> None:
    writer = as_user(port, "writer")
    writer.hset("row", "view", b"bytes")
    put = writer.register_script("return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])")
    put(["row"], ["other", "more"])
    with writer.lock("a-lock", timeout=1):
        pass
    assert as_user(port, "reader").hmget("row", ["view", "other"]) == [b"bytes", b"more"]


@pytest.mark.parametrize("command", [["HSET", "row", "a", "b"], ["DEL", "row"], ["FLUSHALL"], ["CONFIG", "GET", "*"]])
def test_the_reader_changes_nothing(port: int, command: list[str]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_user(port, "reader").execute_command(*command)


@pytest.mark.parametrize("command", [["CONFIG", "SET", "dir", "/tmp"], ["FLUSHALL"], ["ACL", "LIST"], ["SHUTDOWN"]])
def test_the_writer_does_not_administrate(port: int, command: list[str]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_user(port, "writer").execute_command(*command)


def test_the_probe_sees_no_data(port: int) -> None:
    assert as_user(port, "probe").ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_user(port, "probe").get("row")


def test_nobody_else_comes_in(port: int) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=port, retry=ONCE).ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=port, username="reader", password="wrong", retry=ONCE).ping()
