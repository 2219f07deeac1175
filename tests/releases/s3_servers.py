"""S3 servers for tests: moto (in memory, conditional writes) and OpenStack Swift with s3api (checks signatures).

    with moto_server(tmp) as endpoint: ...          with swift_server(tmp) as endpoint: ...

Swift comes from Debian's packages (swift-proxy, -account, -container, -object, memcached); without them its tests skip.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.ports import free_ports

BUCKET = "onerec"
MOTO_KEYS = ("test", "test")
SWIFT_KEYS = ("test:tester", "testing")
SWIFT = ("swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server", "memcached")


def wait_for(port: int, process: subprocess.Popen, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server on port {port} ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"no server on port {port} after {seconds} s")


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen]:
    with open(log, "ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(port, process)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, keys: tuple[str, str]) -> None:
    """What boto3 reads from the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


def client(endpoint: str, keys: tuple[str, str]):
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name="us-east-1",
    )


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    code = f"import sys; sys.argv = ['moto_server', '-p', '{port}']; from moto.server import main; main()"
    with running([sys.executable, "-c", code], port, folder / "moto.log"):
        endpoint = f"http://127.0.0.1:{port}"
        client(endpoint, MOTO_KEYS).create_bucket(Bucket=BUCKET)
        yield endpoint


def no_swift() -> str:
    missing = [name for name in SWIFT if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        return f"needs OpenStack Swift as root: {', '.join(missing) or 'not root'}"
    return ""


@contextlib.contextmanager
def swift_server(folder: Path) -> Iterator[str]:
    """One proxy and three storage servers on loopback, one replica, signatures checked by s3api."""
    names = ("account", "container", "object", "proxy", "memcached")
    ports = dict(zip(names, free_ports(len(names))))
    for kind in ("account", "container", "object"):
        ring = ["swift-ring-builder", str(folder / f"{kind}.builder")]
        subprocess.run([*ring, "create", "4", "1", "0"], check=True, capture_output=True)
        device = f"r1z1-127.0.0.1:{ports[kind]}/d1"
        subprocess.run([*ring, "add", device, "1"], check=True, capture_output=True)
        subprocess.run([*ring, "rebalance"], check=True, capture_output=True)
        (folder / f"{kind}.conf").write_text(
            f"[DEFAULT]\nuser = root\nbind_ip = 127.0.0.1\nbind_port = {ports[kind]}\nworkers = 0\n"
            "mount_check = false\n"
            f"devices = {folder}/nodes\nswift_dir = {folder}\nlog_address = {folder}/nolog\ndisable_fallocate = true\n"
            f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        )
    (folder / "nodes" / "d1").mkdir(parents=True)
    (folder / "proxy.conf").write_text(
        f"[DEFAULT]\nuser = root\nbind_ip = 127.0.0.1\nbind_port = {ports['proxy']}\nworkers = 0\n"
        f"swift_dir = {folder}\nlog_address = {folder}/nolog\n"
        "[pipeline:main]\npipeline = catch_errors cache listing_formats s3api tempauth copy slo dlo proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
        f"[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{ports['memcached']}\n"
        "[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing .admin .reseller_admin\n"
        "[filter:s3api]\nuse = egg:swift#s3api\ns3_acl = false\n"
        + "".join(
            f"[filter:{n}]\nuse = egg:swift#{n}\n" for n in ("catch_errors", "listing_formats", "copy", "slo", "dlo")
        )
    )
    with contextlib.ExitStack() as stack:
        cache = ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(ports["memcached"])]
        stack.enter_context(running(cache, ports["memcached"], folder / "memcached.log"))
        for kind in ("account", "container", "object", "proxy"):
            command = [f"swift-{kind}-server", str(folder / f"{kind}.conf"), "-v"]
            stack.enter_context(running(command, ports[kind], folder / f"{kind}.log"))
        endpoint = f"http://127.0.0.1:{ports['proxy']}"
        client(endpoint, SWIFT_KEYS).create_bucket(Bucket=BUCKET)
        yield endpoint


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own; it refuses to run as root, so user postgres runs it."""
    bins = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="onerec-postgres-") as own:  # pytest's folders are closed to other users
        Path(own).chmod(0o777)
        data, (port,) = Path(own) / "pg", free_ports(1)
        initdb = [bins / "initdb", "-D", data, "-A", "trust", "-U", "onerec", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)
        command = [bins / "postgres", "-D", data, "-p", str(port), "-k", data, "-c", "fsync=off", "-h", "127.0.0.1"]
        with open(folder / "pg.log", "ab") as out:
            server = subprocess.Popen(command, stdout=out, stderr=out, cwd="/", **user)
        try:
            wait_for(port, server)
            yield f"postgresql://onerec@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)


def no_postgres() -> str:
    return "" if list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) else "needs PostgreSQL's server"
