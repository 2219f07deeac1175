"""The load generator: requests in closed loops or at given moments, and what became of each.

    run = Run(world, server.grpc_url, k=10, seed=1)
    asyncio.run(run.closed(clients=4, seconds=10))      asyncio.run(run.at(arrivals(rate, 10, rng)))
    run.ms(50, 99), run.rate, run.outcome

It shares the machine with the server, so it does little while it measures: requests are made before, answers are
checked after, and the garbage collector rests. A request at a given moment counts from that moment, also where the
generator came late; `late_ms` tells how late.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import numpy as np

from benchmarks.serving.world import World
from serving.client import AsyncRecommendClient
from serving.protocol import Answer, OverloadedError, Query

DEADLINE_S = 5.0
PREPARED = 1_000  # different requests of a closed loop


class Run:
    """Latencies in seconds, and what else happened, of one phase."""

    def __init__(self, world: World, url: str, k: int, seed: int) -> None:
        self.world, self.url, self.k, self.rng = world, url, k, np.random.default_rng(seed)
        self.seconds: list[float] = []
        self.late: list[float] = []
        self.outcome: Counter[str] = Counter()
        self.answers: list[tuple[Query, Answer]] = []
        self.elapsed = 0.0

    async def one(self, client: AsyncRecommendClient, query: Query, since: float | None = None) -> None:
        """Ask, and count from `since` (default: from now)."""
        started = time.perf_counter() if since is None else since
        options = {"now_s": query.now_s, "exclude": query.exclude}
        try:
            answer = await client.recommend(query.user_id, query.k, DEADLINE_S, **options)
        except (OverloadedError, TimeoutError) as error:
            self.outcome["shed" if isinstance(error, OverloadedError) else "late"] += 1
        except Exception as error:
            self.outcome[f"error {type(error).__name__}"] += 1
        else:
            self.seconds.append(time.perf_counter() - started)
            self.outcome["ok"] += 1
            self.answers.append((query, answer))

    async def closed(self, clients: int, seconds: float) -> None:
        """Each client asks again as soon as it is answered."""
        queries = [self.world.query(self.rng, self.k) for _ in range(PREPARED)]
        at = 0

        async def asking(client: AsyncRecommendClient) -> None:
            end = time.perf_counter() + seconds

            async def loop() -> None:
                nonlocal at
                while time.perf_counter() < end:
                    at += 1
                    await self.one(client, queries[at % PREPARED])

            await asyncio.gather(*(loop() for _ in range(clients)))

        await self._timed(asking)

    async def at(self, moments_N: np.ndarray) -> None:
        """A request at each moment (seconds from now, growing), whether or not earlier ones are answered."""
        queries = [self.world.query(self.rng, self.k) for _ in moments_N]

        async def asking(client: AsyncRecommendClient) -> None:
            tasks, begun = [], time.perf_counter()
            for query, moment in zip(queries, moments_N):
                due = begun + float(moment)
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                self.late.append(time.perf_counter() - due)
                tasks.append(asyncio.ensure_future(self.one(client, query, due)))
            await asyncio.gather(*tasks)

        await self._timed(asking)

    async def _timed(self, asking: Callable[[AsyncRecommendClient], Awaitable[None]]) -> None:
        async with AsyncRecommendClient(self.url, retries=0) as client:
            with resting_collector():
                started = time.perf_counter()
                await asking(client)
                self.elapsed = time.perf_counter() - started
        self.check()

    def check(self) -> None:
        """Look at the answers that came since the last time."""
        for query, answer in self.answers:
            self.world.check(query, answer)
        self.answers.clear()

    @property
    def rate(self) -> float:
        return self.outcome["ok"] / self.elapsed

    def ms(self, *percentiles: float) -> list[float]:
        return _ms(self.seconds, percentiles)

    def late_ms(self, *percentiles: float) -> list[float]:
        """How much later than due requests at given moments were sent."""
        return _ms(self.late, percentiles)


async def recovery(run: Run, before_ms: float, seconds: float) -> float:
    """Seconds from now until the median of ten requests in a row is at most twice what it was; inf if it never is."""
    started = time.perf_counter()
    async with AsyncRecommendClient(run.url, retries=0) as client:
        while (at := time.perf_counter()) - started < seconds:
            last = len(run.seconds)
            for _ in range(10):
                await run.one(client, run.world.query(run.rng, run.k))
            if len(run.seconds) == last + 10 and 1000 * float(np.median(run.seconds[last:])) <= 2 * before_ms:
                run.check()
                return at - started
    return float("inf")


@contextlib.contextmanager
def resting_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _ms(seconds: list[float], percentiles: tuple[float, ...]) -> list[float]:
    if not seconds:
        return [float("nan")] * len(percentiles)
    return (1000 * np.percentile(seconds, percentiles)).tolist()
