"""Real Redis and PostgreSQL servers for the tests: own folder, free port, stopped at the end.

    with redis_server() as address: ...          # "127.0.0.1:41234"
    with postgres_server() as url: ...           # "postgresql+psycopg://onerec@127.0.0.1:41235/onerec?sslmode=disable"

Without the binaries the test is skipped and says what to install. PostgreSQL refuses to run as root: then it is started
as the user `postgres`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.ports import free_ports

WAIT_S = 30


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Redis server without persistence; yields host:port."""
    import redis

    if not (binary := shutil.which("redis-server")):
        pytest.skip("no redis-server on the path: install the package redis-server")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen([binary, "--port", str(port), *options], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                _wait(lambda: client.ping(), server)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(WAIT_S)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server with an empty database `onerec`; yields its SQLAlchemy URL."""
    import psycopg

    if not (binaries := _postgres_binaries()):
        pytest.skip("no PostgreSQL server: install the package postgresql")
    (port,), folder = free_ports(1), Path(tempfile.mkdtemp(prefix="onerec-pg-"))
    as_user: list[str] = []
    if os.getuid() == 0:
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root and there is no user postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    try:
        initdb = [*as_user, binaries / "initdb", "-D", folder / "db", "-U", "onerec", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/")
        options = ["-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-c", "fsync=off"]
        server = subprocess.Popen(
            [*as_user, binaries / "postgres", "-D", folder / "db", *options], stderr=subprocess.DEVNULL, cwd="/"
        )
        try:
            address = f"host=127.0.0.1 port={port} user=onerec dbname=postgres sslmode=disable"
            _wait(lambda: psycopg.connect(address).close(), server)
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("CREATE DATABASE onerec")
            yield f"postgresql+psycopg://onerec@127.0.0.1:{port}/onerec?sslmode=disable"
        finally:
            server.send_signal(signal.SIGINT)  # the fast shutdown: SIGTERM waits for pooled connections
            server.wait(WAIT_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_binaries() -> Path | None:
    on_path = [Path(found).parent] if (found := shutil.which("postgres")) else []
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in [*on_path, *packaged] if (folder / "initdb").exists()), None)


def _wait(ready: Callable[[], object], server: subprocess.Popen) -> None:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            ready()
            return
        except Exception as error:  # connection refused, in the words of each client
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start (status {server.poll()})") from error
            time.sleep(0.05)
