"""Online read of whole users: p50 and p99, SQLite and Redis, in process and through the Feast server.

    python -m benchmarks.features.online_read [--users 400] [--calls 300]

The users are heavy ones: every list is full (20, 256 and 2,000 events of seven fields, 10,000 seen items), the values
as wide as KuaiRand's. Readers of the same rows:

- `ours`: `OnlineFeatures.read_many`, what Triton's `recommend` calls: packed rows, decoded by NumPy.
- `get_online_features`: Feast's own call over our store (feature_repo/online_rows.py), to protobuf.
- `feast's store`: Feast's own call over Feast's own store (protobuf, one value a column), decoded to the same arrays.
- `server`: `feast serve` over our store, HTTP and JSON on this machine.

Redis is started by the benchmark. Writes benchmarks/features/online_read.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from feast.repo_config import RepoConfig

from benchmarks.machine import commit, processor
from datasets.contract import EVENT_FIELDS
from datasets.partitions import partition_path, write_partition
from feature_repo.online import OnlineFeatures
from feature_repo.profiles import LocalProfile
from feature_repo.services import SERVICE
from feature_repo.store import apply, materialize, quiet
from feature_repo.views import VIEW_COLUMNS
from tests.feature_repo.conftest import OtherStores
from tests.feature_repo.servers import redis_server

DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LENGTHS = {"user_static": 30, "user_short": 20, "user_positive": 256, "user_lifelong": 2000, "user_seen": 10_000}
HIGHEST = {
    "item_id": 5_000_000,
    "author_id": 9_000_000,
    "tag": 100,
    "play_ms": 300_000,
    "duration_ms": 300_000,
    "label": 256,
}
SIZES = (1, 10, 100)
TABLE = Path(__file__).with_suffix(".md")


def write_users(features: Path, users: int) -> None:
    """One partition of each view, every list full."""
    rng = np.random.default_rng(1)
    for view, columns in VIEW_COLUMNS.items():
        length = LENGTHS[view]
        table = {
            "user_id": pa.array(np.arange(users)),
            "event_timestamp": pa.array([DAY] * users, pa.timestamp("ms", "UTC")),
        }
        for column in columns:
            values = _values(rng, column, users * length)
            offsets = pa.array(np.arange(users + 1) * length, pa.int32())
            table[column] = pa.ListArray.from_arrays(offsets, pa.array(values))
        write_partition(partition_path(features / view, DAY.date()), pa.table(table))


def _values(rng: np.random.Generator, column: str, count: int) -> np.ndarray:
    field = next((field for field in EVENT_FIELDS if column.endswith(f"_{field}")), "")
    if field == "time_s":
        return int(DAY.timestamp()) - rng.integers(0, 100 * 86_400, count)
    return rng.integers(0, HIGHEST.get(field, 8192), count)


Read = Callable[[Sequence[int]], object]


READERS = ("ours", "get_online_features", "server", "feast's store")


def readers(wanted: Sequence[str], features: Path, home: Path, redis: str) -> Iterator[tuple[str, str, Read]]:
    """(store, reader, a call that reads some users), each over an online store that it has filled."""
    address = {"connection_string": redis}
    ours = {
        "SQLite": LocalProfile(),
        "Redis": OtherStores(online={"type": "feature_repo.online_redis.RedisRowOnlineStore", **address}),
    }
    theirs = {
        "SQLite": OtherStores(online={"type": "sqlite", "path": str(home / "feasts.db")}),
        "Redis": OtherStores(project="feasts", online={"type": "redis", **address}),
    }
    for name, profile in ours.items():
        where = {"features": features, "feature_store": home / f"ours-{name}", "profile": profile}
        fill(where)
        if "ours" in wanted:
            yield name, "ours", OnlineFeatures(**where).read_many
        if "get_online_features" in wanted:
            yield name, "get_online_features", _through_feast(where)
        if "server" in wanted:
            with _server(where) as call:
                yield name, "server", call
    for name, profile in theirs.items() if "feast's store" in wanted else ():
        where = {"features": features, "feature_store": home / f"feasts-{name}", "profile": profile}
        fill(where)
        yield name, "feast's store", _through_feast(where, arrays=True)


def fill(where: dict) -> None:
    apply(**where)
    materialize(**where, start=DAY - dt.timedelta(days=1), end=DAY)


def _through_feast(where: dict, arrays: bool = False) -> Read:
    with quiet():
        store = FeatureStore(config=where["profile"].repo_config(where["feature_store"]))
    service = store.get_feature_service(SERVICE)

    def read(users: Sequence[int]) -> object:
        answer = store.get_online_features(features=service, entity_rows=[{"user_id": u} for u in users]).proto
        if not arrays:
            return answer
        return [[np.array(value.int64_list_val.val, np.int64) for value in v.values] for v in answer.results]

    return read


@contextlib.contextmanager
def _server(where: dict) -> Iterator[Read]:
    """`feast serve` with the profile's configuration as a file, one worker."""
    folder: Path = where["feature_store"]
    config: RepoConfig = where["profile"].repo_config(folder)
    (folder / "feature_store.yaml").write_text(
        json.dumps(config.model_dump(by_alias=True, exclude_none=True, mode="json"))
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "FEAST_USAGE": "False"}
    with (folder / "server.log").open("w") as log:
        feast = [str(Path(sys.executable).with_name("feast")), "--chdir", str(folder), "serve"]
        options = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--workers", "1"]
        server = subprocess.Popen([*feast, *options], env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"

            def read(users: Sequence[int]) -> object:
                body = {"feature_service": SERVICE, "entities": {"user_id": list(map(int, users))}}
                request = urllib.request.Request(
                    f"{url}/get-online-features", json.dumps(body).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read())

            end = time.monotonic() + 120
            while True:
                try:
                    read([1])
                    break
                except OSError as error:
                    if server.poll() is not None or time.monotonic() > end:
                        said = (folder / "server.log").read_text()[-2000:]
                        raise RuntimeError(f"feast serve does not answer: {said}") from error
                    time.sleep(0.5)
            yield read
        finally:
            server.terminate()
            server.wait(30)


def _percentiles(milliseconds: list[float]) -> str:
    """p50 / p99; the first three calls, which open connections, are not counted."""
    p50, p99 = np.percentile(milliseconds[3:], [50, 99])
    return f"{p50:.2f} / {p99:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--calls", type=int, default=300, help="timed calls for one user; a tenth of them for 100")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    rng, lines = np.random.default_rng(2), []
    with tempfile.TemporaryDirectory() as folder, redis_server() as redis:
        features = Path(folder) / "features"
        write_users(features, args.users)
        for store, reader, read in readers(args.readers, features, Path(folder), redis):
            cells, first = [], ""
            for size in SIZES:
                calls = max(args.calls // {1: 1, 10: 3, 100: 10}[size], 20)
                asked = [rng.choice(args.users, size, replace=False).tolist() for _ in range(calls + 3)]
                wall, cpu = [], []
                for users in asked:
                    begun, own = time.perf_counter(), time.process_time()
                    read(users)
                    wall.append(1000 * (time.perf_counter() - begun))
                    cpu.append(1000 * (time.process_time() - own))
                cells.append(_percentiles(wall))
                first = first or _percentiles(cpu)
            lines.append(f"| {store} | {reader} | {' | '.join(cells)} | {first} |")
            print(lines[-1], flush=True)
    events = " + ".join(f"{LENGTHS[v]:,} x 7" for v in ("user_short", "user_positive", "user_lifelong"))
    head = [
        "# Online read of whole users",
        "",
        "Milliseconds a call, p50 / p99. CPU: what the reading process itself computes, whatever else runs beside it.",
        "",
        "| store | reader | 1 user | 10 users | 100 users | CPU, 1 user |",
        "|---|---|---|---|---|---|",
    ]
    chosen = "" if args.readers == list(READERS) else f" --readers {shlex.join(args.readers)}"
    tail = [
        "",
        f"Every user has {events} events, {LENGTHS['user_seen']:,} seen items, {LENGTHS['user_static']} static codes.",
        "",
        f"- command: python -m benchmarks.features.online_read --users {args.users} --calls {args.calls}{chosen}",
        f"- hardware: {processor()}, {os.cpu_count()} cores; load when it ended {os.getloadavg()[1]:.1f}",
        f"- commit {commit()}, {dt.date.today()}",
    ]
    args.out.write_text("\n".join([*head, *lines, *tail]) + "\n")


if __name__ == "__main__":
    main()
