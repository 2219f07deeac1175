"""Half load for half an hour while five releases come and go: errors, memory and /dev/shm.

    python -m benchmarks.serving.soak --root var --source simulated --minutes 30
    python -m benchmarks.serving.soak --minutes 2 --out build/serving

A store of its own starts with the workspace's production release; five more are made of it (`refresh_items`, each
without some items), promoted and rolled back through the channels, which a controller follows as in production. The
first sixth of the time is warm-up with one promotion and rollback; memory is compared between its end and the end of
the run, when the same release serves. A client that was stopped for a while goes on without making up for it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.serving.fuzz import memory
from benchmarks.serving.generator import Run
from benchmarks.serving.world import World, header, serving
from releases.channels import promote, read_channel, rollback
from releases.manifest import load_release
from releases.object_store import DirectoryStore
from serving.client import AsyncRecommendClient
from serving.config import ServingConfig
from serving.controller import Controller
from serving.refresh_items import refresh_items
from serving.triton_server import TritonServer

RELEASES, SHARE, K, SAMPLE_S = 5, 0.5, 10, 5.0
DEADLINE_S = 600.0  # the generator may be stopped while somebody else measures


@dataclasses.dataclass
class Soak:
    """What is seen while it runs."""

    world: World
    url: str
    until: float = 0.0
    moving: bool = True
    outcome: Counter = dataclasses.field(default_factory=Counter)
    served: Counter = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)
    samples: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)  # seconds, MiB, MiB of shm
    switches: list[tuple[str, float]] = dataclasses.field(default_factory=list)

    @property
    def over(self) -> bool:
        """The time is up, and the last switch is done: a machine that is busy may be late."""
        return time.monotonic() >= self.until and not self.moving

    async def one(self, client: AsyncRecommendClient, rng: np.random.Generator) -> None:
        query, begun = self.world.query(rng, K), time.monotonic()
        try:
            answer = await client.recommend(query.user_id, K, DEADLINE_S, now_s=query.now_s, exclude=query.exclude)
        except Exception as error:
            self.outcome[f"{type(error).__name__}: {str(error)[:80]}"] += 1
            return
        self.seconds.append(time.monotonic() - begun)
        self.outcome["ok"] += 1
        self.served[answer.release_id] += 1
        self.world.check(query, answer)

    async def arrivals(self, rate: float) -> None:
        """Requests at random moments, `rate` a second."""
        rng, tasks, due = np.random.default_rng(0), set(), time.monotonic()
        async with AsyncRecommendClient(self.url, retries=0) as client:
            while not self.over:
                now = time.monotonic()
                due = max(due, now - 1) + rng.exponential(1 / rate)
                await asyncio.sleep(max(due - now, 0))
                tasks.add(task := asyncio.ensure_future(self.one(client, rng)))
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def sample(self, server: TritonServer) -> None:
        start = time.monotonic()
        while not self.over:
            self.samples.append((time.monotonic() - start, *await asyncio.to_thread(memory, server)))
            await asyncio.sleep(SAMPLE_S)

    async def switch(self, move: Any, wanted: str, name: str) -> None:
        """Move the channel and wait until `wanted` answers; time in which this process was stopped does not count."""
        last, took, before = time.monotonic(), 0.0, self.served[wanted]
        await asyncio.to_thread(move)
        while self.served[wanted] == before:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            took, last = took + min(now - last, 1.0), now
            if took > 120:
                raise RuntimeError(f"release {wanted} does not answer 120 s after the {name}")
        self.switches.append((name, took))
        print(f"{name} of {wanted}: {took:.2f} s", flush=True)

    def grown(self, minutes: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Median MiB (memory, shm) of the last fifteenth of the warm-up, and of the run."""
        total = 60 * minutes
        end = max(total, self.samples[-1][0])
        spans = ((total / 6 - total / 15, total / 6), (end - total / 15, float("inf")))
        early, late = (np.array([s[1:] for s in self.samples if a <= s[0] <= b]) for a, b in spans)
        return tuple(np.median(early, 0)), tuple(np.median(late, 0))  # type: ignore[return-value]


def make_releases(store: DirectoryStore, base: str, count: int) -> list[str]:
    """Releases of the same model, the i-th without its first i items."""
    made, folder = [], load_release(store, base)[0]
    table = pq.read_table(folder / "items.parquet")
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(1, count + 1):
            pq.write_table(table.slice(i), items := Path(scratch) / "items.parquet")
            made.append(refresh_items(store=store, base=base, items=items, progress=lambda _: None)[0])
    return made


async def run(soak: Soak, server: TritonServer, store: DirectoryStore, made: list[str], minutes: float, rate: float):
    """Load, samples and switches together."""
    base, start = server.release.name, time.monotonic()
    soak.until = start + 60 * minutes

    async def moves() -> None:
        warm, rest = 10 * minutes, 60 * minutes * (1 - 1 / 6 - 2 / 15)
        plan = [(warm * 0.1, warm * 0.3, made[0])]
        plan += [
            (warm + rest * (i + 0.1) / len(made), warm + rest * (i + 0.6) / len(made), m) for i, m in enumerate(made)
        ]
        for up, down, release in plan:
            await asyncio.sleep(max(start + up - time.monotonic(), 0))
            await soak.switch(lambda release=release: promote(store, release), release, "promotion")
            await asyncio.sleep(max(start + down - time.monotonic(), 0))
            await soak.switch(lambda: rollback(store), base, "rollback")
        soak.moving = False

    await asyncio.gather(soak.arrivals(rate), soak.sample(server), moves())


def table(soak: Soak, args: argparse.Namespace, rate: float, peak: float) -> str:
    early, late = soak.grown(args.minutes)
    growth = [100 * (b / a - 1) for a, b in zip(early, late)]
    errors = {what: n for what, n in soak.outcome.items() if what != "ok"}
    p50, p99 = (1e3 * np.percentile(soak.seconds, [50, 99])).tolist()
    minutes = {int(at // 60): (mib, shm) for at, mib, shm in reversed(soak.samples)}
    switches = [f"{name} {s:.2f} s" for name, s in soak.switches]
    command = f"python -m benchmarks.serving.soak --source {args.source} --minutes {args.minutes:g}"
    return f"""{header("Soak", command)}
{soak.outcome.total():,} requests in {args.minutes:g} minutes, {rate:.1f} a second ({SHARE:.0%} of {
        peak:.1f} measured just before);
other work shared the cores. Errors: {errors or "none"}. p50 {p50:.0f} ms, p99 {p99:.0f} ms.
{soak.world.faults_text()}.

Answers by release: {", ".join(f"{name} {count:,}" for name, count in soak.served.most_common())}.
From the call to the first answer of the other release: {", ".join(switches)}.

| | end of warm-up | end | growth |
|---|---|---|---|
| memory of the processes, MiB | {early[0]:.1f} | {late[0]:.1f} | {growth[0]:+.2f} % |
| /dev/shm, MiB | {early[1]:.2f} | {late[1]:.2f} | {growth[1]:+.2f} % |

MiB at the first sample of each minute (memory, /dev/shm): {
        "; ".join(f"{m}: {mib:.0f}, {shm:.1f}" for m, (mib, shm) in sorted(minutes.items()))
    }.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    base = args.root.resolve() / args.source / "store"
    if (channel := read_channel(DirectoryStore(base), "production")) is None:
        raise ValueError(f"{base} has no production release; run `make daily` first, or give --root and --source")
    config = ServingConfig(threads=1, queue_timeout_ms=60_000)
    with tempfile.TemporaryDirectory(prefix="onerec-soak-") as scratch:
        store = DirectoryStore(Path(scratch) / "store")
        folder = f"releases/{channel.release_id}"
        shutil.copytree(base / folder, Path(scratch) / "store" / folder)
        promote(store, channel.release_id)
        made = make_releases(store, channel.release_id, RELEASES)
        release = load_release(store, channel.release_id)[0]
        with serving(args.root, args.source, config, args.out / "soak-triton.log", release) as (server, world):
            world.codes |= dict.fromkeys(made, world.codes[release.name])
            warm = Run(world, server.grpc_url, K, 0)
            asyncio.run(warm.closed(8, min(10, 6 * args.minutes)))
            soak = Soak(world, server.grpc_url)
            rate = SHARE * warm.rate
            print(f"peak {warm.rate:.1f} a second", flush=True)
            with Controller(server, store, log=lambda text: print(text, flush=True)):
                asyncio.run(run(soak, server, store, made, args.minutes, rate))
    (args.out / "soak-samples.json").write_text(json.dumps(soak.samples))
    text = table(soak, args, rate, warm.rate)
    (args.out / "soak.md").write_text(text)
    print(text)
    return int(set(soak.outcome) != {"ok"})


if __name__ == "__main__":
    sys.exit(main())
