"""What queueing alone makes of latency: a server of known speed that answers in batches, and nothing else goes wrong.

    service = Service.fit({1: 0.011, 4: 0.031})                    seconds of a batch by its users
    seconds = sojourns(arrivals(rate, 60, rng), service, max_batch=16)

The yardstick for p99/p50 under load. With arrivals at random some requests find others before them, however even the
server is: one that takes the same time for every request and no two at once has a p99/p50 of 4.3 at 70 % load (M/D/1),
and only what batching saves can lower that. With arrivals at even distances there is no such floor.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Service:
    """Seconds of a batch of b users: `fixed` + b * `each`."""

    fixed: float
    each: float

    @classmethod
    def fit(cls, seconds: Mapping[int, float], weights: Mapping[int, float] | None = None) -> Service:
        """Least squares over mean seconds by batch size; neither part below zero. ValueError without a batch."""
        if not seconds:
            raise ValueError("no batch was served, so there is nothing to fit; run for longer")
        size = np.array(sorted(seconds), float)
        value = np.array([seconds[int(b)] for b in size])
        weight = np.sqrt([1.0 if weights is None else weights[int(b)] for b in size])
        if len(size) == 1:
            return cls(0.0, float(value[0] / size[0]))
        fixed, each = np.linalg.lstsq(np.stack([weight, weight * size], 1), weight * value, rcond=None)[0]
        if fixed < 0:
            fixed, each = 0.0, (weight**2 * size * value).sum() / (weight**2 * size**2).sum()
        elif each < 0:
            fixed, each = (weight**2 * value).sum() / (weight**2).sum(), 0.0
        return cls(float(fixed), float(each))

    def __call__(self, users: int) -> float:
        return self.fixed + users * self.each

    def peak(self, max_batch: int, servers: int = 1) -> float:
        """Users a second when every batch is full."""
        return servers * max_batch / self(max_batch)


def arrivals(rate: float, seconds: float, rng: np.random.Generator, even: bool = False) -> np.ndarray:
    """Moments of `rate * seconds` requests: at even distances, or at random (a Poisson process)."""
    count = max(round(rate * seconds), 1)
    return np.arange(count) / rate if even else np.cumsum(rng.exponential(1 / rate, count))


def sojourns(at_N: np.ndarray, service: Service, max_batch: int, servers: int = 1) -> np.ndarray:
    """Seconds from each arrival to its answer; a server that is free takes up to `max_batch` of those who wait."""
    free, done_N, i = [0.0] * servers, np.empty(len(at_N)), 0
    while i < len(at_N):
        start = max(heapq.heappop(free), float(at_N[i]))
        last = min(int(np.searchsorted(at_N, start, side="right")), i + max_batch)
        done_N[i:last] = end = start + service(last - i)
        heapq.heappush(free, end)
        i = last
    return done_N - at_N


def floor_ratio(
    rate: float, service: Service, max_batch: int, servers: int = 1, even: bool = False, requests: int = 50_000
) -> float:
    """p99/p50 of such a server at `rate` requests a second."""
    at_N = arrivals(rate, requests / rate, np.random.default_rng(0), even)
    p50, p99 = np.percentile(sojourns(at_N, service, max_batch, servers), [50, 99])
    return float(p99 / p50)
