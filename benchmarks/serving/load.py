"""Load on the whole road (client, Triton, Feast, model): by clients, held, and over the peak; every answer checked.

    python -m benchmarks.serving.load --root var --source simulated --seconds 20 --out build/serving

Writes load.md and load.svg into --out. Closed loops of 1, 4 and 16 clients; then arrivals at random at 70 % of the
highest throughput; then 3 times that throughput, and how long until latency is as before. The generator shares the
machine with the server, so what it reports is an upper bound of latency.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from matplotlib.figure import Figure

from benchmarks.figures import finish, save
from benchmarks.serving.world import World, header, serving
from feature_repo.online import OnlineFeatures
from serving.client import AsyncRecommendClient
from serving.config import ServingConfig
from serving.protocol import OverloadedError

CLIENTS = (1, 4, 16)
HELD, OVERLOAD = 0.7, 3.0
DEADLINE_S = 5.0


class Run:
    """Latencies in seconds with their start, and what else happened, of one phase."""

    def __init__(self, world: World, url: str, k: int, seed: int) -> None:
        self.world, self.url, self.k, self.rng = world, url, k, np.random.default_rng(seed)
        self.at: list[float] = []
        self.seconds: list[float] = []
        self.outcome: Counter = Counter()
        self.elapsed = 0.0

    async def one(self, client: AsyncRecommendClient) -> None:
        query = self.world.query(self.rng, self.k)
        options = {"now_s": query.now_s, "exclude": query.exclude}
        started = time.perf_counter()
        try:
            answer = await client.recommend(query.user_id, query.k, DEADLINE_S, **options)
        except (OverloadedError, TimeoutError) as error:
            self.outcome["shed" if isinstance(error, OverloadedError) else "late"] += 1
        except Exception as error:
            self.outcome[f"error {type(error).__name__}"] += 1
        else:
            self.at.append(started)
            self.seconds.append(time.perf_counter() - started)
            self.outcome["ok"] += 1
            self.world.check(query, answer)

    async def closed(self, clients: int, seconds: float) -> None:
        """Each client asks again as soon as it is answered."""
        end = time.perf_counter() + seconds

        async def loop(client: AsyncRecommendClient) -> None:
            while time.perf_counter() < end:
                await self.one(client)

        await self._timed(lambda client: asyncio.gather(*(loop(client) for _ in range(clients))))

    async def open(self, rate: float, seconds: float) -> None:
        """Requests arrive at random, `rate` a second, whether or not earlier ones are answered."""

        async def arrivals(client: AsyncRecommendClient) -> None:
            tasks, due = set(), time.perf_counter()
            end = due + seconds
            while due < end:
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                task = asyncio.ensure_future(self.one(client))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due += self.rng.exponential(1 / rate)
            await asyncio.gather(*tasks)

        await self._timed(arrivals)

    async def _timed(self, what) -> None:
        async with AsyncRecommendClient(self.url, retries=0) as client:
            started = time.perf_counter()
            await what(client)
            self.elapsed = time.perf_counter() - started

    @property
    def rate(self) -> float:
        return self.outcome["ok"] / self.elapsed

    def ms(self, *percentiles: float) -> list[float]:
        if not self.seconds:
            return [float("nan")] * len(percentiles)
        return (1000 * np.percentile(self.seconds, percentiles)).tolist()


def statistics(url: str) -> dict[str, tuple[int, float, float, int]]:
    """By model: requests, their total seconds in the server, seconds in the queue, runs."""
    client = triton.InferenceServerClient(url)
    try:
        found = client.get_inference_statistics()
    finally:
        client.close()
    return {
        ("onerec" if model.name.startswith("onerec-") else model.name): (
            model.inference_count,
            model.inference_stats.success.ns / 1e9,
            model.inference_stats.queue.ns / 1e9,
            model.execution_count,
        )
        for model in found.model_stats
    }


def parts(before: dict, after: dict) -> dict[str, float]:
    """Mean milliseconds a request in `recommend`, and a run of it in `onerec`, between two readings."""
    count, total, queue, runs = (b - a for a, b in zip(before["recommend"], after["recommend"]))
    _, model_total, _, model_runs = (b - a for a, b in zip(before["onerec"], after["onerec"]))
    return {
        "recommend_ms": 1000 * (total - queue) / max(count, 1),
        "recommend_queue_ms": 1000 * queue / max(count, 1),
        "recommend_batch": count / max(runs, 1),
        "onerec_ms": 1000 * model_total / max(runs, 1),
        "onerec_runs": model_runs / max(runs, 1),
    }


def feast_ms(root: Path, source: str, users: list[int], reads: int = 300) -> list[float]:
    """p50 and p99 of one user's read from the online store, in this process, in milliseconds."""
    base = Path(root).resolve() / source
    store, seconds = OnlineFeatures(base / "features", base / "feature_store"), []
    for user in (users * (1 + reads // len(users)))[:reads]:
        started = time.perf_counter()
        store.read(user)
        seconds.append(time.perf_counter() - started)
    return (1000 * np.percentile(seconds[5:], [50, 99])).tolist()


async def recovery(run: Run, before_ms: float, seconds: float) -> float:
    """Seconds after the overload until the median of ten requests in a row is at most twice what it was."""
    started = time.perf_counter()
    async with AsyncRecommendClient(run.url, retries=0) as client:
        while time.perf_counter() - started < seconds:
            last = len(run.seconds)
            at = time.perf_counter()
            for _ in range(10):
                await run.one(client)
            if len(run.seconds) == last + 10 and 1000 * float(np.median(run.seconds[last:])) <= 2 * before_ms:
                return at - started
    return float("inf")


async def measure(server: Any, world: World, k: int, seconds: float) -> tuple[list[str], list[Run], dict]:
    url, rows, runs, own = server.grpc_url, [], [], {}
    warm = Run(world, url, k, 0)
    await warm.closed(4, 3)
    for clients in CLIENTS:
        run, before = Run(world, url, k, clients), statistics(url)
        await run.closed(clients, seconds)
        own[clients] = parts(before, statistics(url)) | {"client_ms": 1000 * float(np.mean(run.seconds))}
        rows.append(_row(_clients(clients), run))
        runs.append(run)
    peak = max(run.rate for run in runs)
    held = Run(world, url, k, 70)
    await held.open(HELD * peak, seconds)
    rows.append(_row(f"{HELD:.0%} of peak", held))
    over = Run(world, url, k, 300)
    await over.open(OVERLOAD * peak, seconds / 2)
    rows.append(_row(f"{OVERLOAD:g} x peak", over))
    back = await recovery(Run(world, url, k, 301), runs[0].ms(50)[0], 30)
    return rows, [*runs, held, over], {"own": own, "recovery_s": back}


def _row(name: str, run: Run) -> str:
    p50, p90, p99 = run.ms(50, 90, 99)
    return f"| {name} | {run.rate:.0f} | {p50:.1f} | {p90:.1f} | {p99:.1f} | {p99 / p50:.2f} | {_rest(run)} |"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def percentiles_plot(seconds: Mapping[str, Sequence[float]], path: Path) -> None:
    """Latency in ms on a logarithmic axis over the percentiles 0 to 99, one curve a phase."""
    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.subplots()
    percent = np.arange(100)
    for name, values in seconds.items():
        axes.plot(percent, 1000 * np.percentile(values, percent), linewidth=1.6, label=name)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    axes.set_yscale("log")
    axes.set_xticks([0, 25, 50, 75, 90, 99])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("percentile of the answered requests")
    axes.set_ylabel("latency, ms")
    finish(axes)
    save(figure, path)


def _rest(run: Run) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(run.outcome.items()) if what != "ok") or "none"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20, help="length of a phase")
    parser.add_argument("--recommend-instances", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    # Two of `recommend`: while the model works on one batch, the next one is read and encoded.
    config = ServingConfig(threads=1, recommend_instances=args.recommend_instances)
    args.out.mkdir(parents=True, exist_ok=True)
    with serving(args.root, args.source, config, args.out / "load-triton.log") as (server, world):
        rows, runs, more = asyncio.run(measure(server, world, args.k, args.seconds))
        feast50, feast99 = feast_ms(args.root, args.source, world.users)
    own = "\n".join(
        f"| {clients} | {p['client_ms']:.1f} | {p['recommend_queue_ms']:.1f} | {p['recommend_ms']:.1f}"
        f" | {p['onerec_ms']:.1f} | {p['recommend_batch']:.1f} | {p['onerec_runs']:.2f} |"
        for clients, p in more["own"].items()
    )
    command = f"python -m benchmarks.serving.load --source {args.source} --k {args.k} --seconds {args.seconds:g}"
    table = f"""{header("Serving under load, CPU", command)}
{config.recommend_instances} `recommend`, one `onerec` instance, {config.threads} thread each; {args.k} items a request.
The generator runs on the same cores.

| load | answers/s | p50 ms | p90 ms | p99 ms | p99/p50 | not answered |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Recovered {more["recovery_s"]:.1f} s after the overload. {world.faults_text()}.

Where a request's time goes (means in ms; `recommend` holds `onerec`, the rest of it is Feast, encoding and choice):

| clients | at the client | queue of `recommend` | in `recommend` | of it in `onerec` | users a run | runs of `onerec` |
|---|---|---|---|---|---|---|
{own}

A Feast read of one user, alone: p50 {feast50:.2f} ms, p99 {feast99:.2f} ms.

![latency](load.svg)
"""
    (args.out / "load.md").write_text(table)
    names = [*map(_clients, CLIENTS), f"{HELD:.0%} of peak", f"{OVERLOAD:g} x peak"]
    percentiles_plot({name: run.seconds for name, run in zip(names, runs) if run.seconds}, args.out / "load.svg")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
