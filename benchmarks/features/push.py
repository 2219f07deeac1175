"""From a click to a read that holds it: how soon the short-term pathway served online follows a user, SQLite and Redis.

    python -m benchmarks.features.push [--users 400] [--clicks 300]

The store is that of `online_read`: every list of every user is full. A click of a random user is pushed through Feast's
push source (`LiveEvents`), then the whole user is read (`OnlineFeatures`) until the click is the newest event of
`user_short`. Counted from the moment the push is called. Redis is started by the benchmark.
Writes benchmarks/features/push.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.features.online_read import DAY, fill, write_users
from benchmarks.machine import commit, processor
from feature_repo.online import OnlineFeatures
from feature_repo.profiles import LocalProfile
from feature_repo.push import LiveEvent, LiveEvents
from tests.feature_repo.conftest import OtherStores
from tests.feature_repo.servers import redis_server

BOUND_S = 2.0
TABLE = Path(__file__).with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--clicks", type=int, default=300)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder, redis_server() as redis:
        features = Path(folder) / "features"
        write_users(features, args.users)
        online = {"type": "feature_repo.online_redis.RedisRowOnlineStore", "connection_string": redis}
        for name, profile in {"SQLite": LocalProfile(), "Redis": OtherStores(online=online)}.items():
            where = {"features": features, "feature_store": Path(folder) / name, "profile": profile}
            fill(where)
            ms = 1000 * np.array(seconds(where, args.users, args.clicks))
            p50, p99 = np.percentile(ms, [50, 99])
            held = f"{np.count_nonzero(ms < 1000 * BOUND_S)} of {len(ms)}"
            lines.append(f"| {name} | {p50:.1f} | {p99:.1f} | {ms.max():.1f} | {held} |")
            print(lines[-1], flush=True)
    head = [
        "# From a click to a read that holds it",
        "",
        f"| store | p50 ms | p99 ms | longest ms | within {BOUND_S:g} s |",
        "|---|---|---|---|---|",
    ]
    tail = [
        "",
        f"- command: python -m benchmarks.features.push --users {args.users} --clicks {args.clicks}",
        f"- hardware: {processor()}, {os.cpu_count()} cores; load when it ended {os.getloadavg()[1]:.1f}",
        f"- commit {commit()}, {dt.date.today()}",
    ]
    args.out.write_text("\n".join([*head, *lines, *tail]) + "\n")


def seconds(where: dict, users: int, clicks: int) -> list[float]:
    """Of each click the time until a read holds it; the first two, which open connections, are not counted."""
    events, online, rng, found = LiveEvents(**where), OnlineFeatures(**where), np.random.default_rng(3), []
    for number in range(clicks + 2):
        user, item = int(rng.integers(users)), 10_000_000 + number
        at = DAY + dt.timedelta(seconds=number + 1)
        begun = time.perf_counter()
        events.push([LiveEvent(user_id=user, item_id=item, event_time=at, labels=("is_click",))])
        while online.read(user).short[-1, 0] != item:
            time.sleep(0.001)
        found.append(time.perf_counter() - begun)
    return found[2:]


if __name__ == "__main__":
    main()
