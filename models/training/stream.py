"""Training sets streamed from Parquet: bounded memory, seeded order, exact resume, several streams of one data set.

    index = Index.scan(paths, catalogue)
    stream = Stream(index, catalogue, config, batch_size=128, max_targets=8, epochs=3, seed=0)
    for batch in stream.batches(start=120): ...      # models/training/prefetch.py reads ahead

The unit of reading is a Parquet row group. An epoch visits the row groups in seeded order, a pool of them at a time:
the pool's rows are encoded, shuffled and cut into batches of similar length, so memory follows `pool_rows`, not the
data. The last epoch goes by day instead, so that training ends on what is newest. Everything follows from counts and
the seed, so step `start` is found without reading what comes before it. With `streams` = n, row groups are dealt to n
disjoint streams: processes times accumulated micro-batches, in any split, see the same global batches.

Legend: B users.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue
from models.training.data import (
    CONTEXT_COLUMNS,
    INPUTS,
    TARGET_COLUMNS,
    UserDays,
    batches_in,
    keep_pathways,
    never_empty,
    read_targets,
    without_full_masks,
)
from models.training.row_groups import Index

DAY_S = 86_400
AHEAD = 2  # pools
COLUMNS = [*CONTEXT_COLUMNS, *TARGET_COLUMNS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recency:
    """Loss weight of a row: halves every `half_life_days`, never under `least`; 1 on average over targets."""

    half_life_days: float = 4.0
    least: float = 0.15

    def weight(self, now_s: np.ndarray, index: Index) -> np.ndarray:
        at = np.array([m for g in index.groups for m in g.targets_at], np.int64)
        targets = np.array([n for g in index.groups for n in g.targets_at.values()])
        return self._raw(now_s, index) / np.average(self._raw(at, index), weights=targets)

    def _raw(self, now_s: np.ndarray, index: Index) -> np.ndarray:
        return np.maximum(0.5 ** ((index.newest_s - now_s) / DAY_S / self.half_life_days), self.least)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """A visit to some row groups: which of the batches that they make in the order of `seed` are taken."""

    groups: list[int]
    first: int
    last: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Batches of one of `streams` disjoint streams over the index.

    `pool_rows` bounds the rows of a pool; AHEAD more are read, a thread each, while one is trained on.
    """

    index: Index
    catalogue: Catalogue
    config: OneRecConfig
    batch_size: int
    max_targets: int
    epochs: int
    seed: int
    recency: Recency = Recency()
    inputs: tuple[str, ...] = INPUTS
    pool_rows: int = 32_768
    streams: int = 1
    number: int = 0
    max_others: int = 0  # of what was shown and was no positive; 0: without

    def __post_init__(self) -> None:
        if len(self.index.groups) < self.streams:
            raise ValueError(
                f"{len(self.index.groups)} row groups for {self.streams} streams (processes times accumulate): write "
                "the training sets with smaller row groups, or use fewer processes"
            )

    def steps(self) -> int:
        """Of all epochs. An epoch is as long as its shortest stream, so that all streams step together."""
        return sum(self._steps_in(epoch) for epoch in range(self.epochs))

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """From step `start` on: what `UserDays.batch` gives, and the rows' `weight` [B].

        Masks of the pathways are left out of a batch in which every history is as long as the longest.
        """
        plan = self._plan(start)
        with ThreadPoolExecutor(AHEAD, "pools") as readers:
            reading: deque[Future[UserDays]] = deque()
            asked = 0
            for i, now in enumerate(plan):
                while asked < min(i + 1 + AHEAD, len(plan)):
                    again = asked and plan[asked].groups == plan[asked - 1].groups  # a small data set is one pool
                    reading.append(reading[-1] if again else readers.submit(self._read, plan[asked].groups))
                    asked += 1
                data = reading[0].result()
                weight = self.recency.weight(data.now_s, self.index)
                for rows in itertools.islice(
                    data.batches(np.arange(len(data)), self.batch_size, now.seed), now.first, now.last
                ):
                    batch = keep_pathways(data.batch(rows, self.max_targets, self.max_others), self.inputs)
                    batch = without_full_masks(never_empty(batch) if self.streams > 1 else batch)
                    yield batch | {"weight": torch.from_numpy(weight[rows]).to(torch.float32)}
                reading.popleft()

    def _plan(self, start: int) -> list[Pool]:
        """What is read from step `start` on."""
        plan = []
        for epoch in range(self.epochs):
            left = self._steps_in(epoch)
            if start >= left:
                start -= left
                continue
            for groups in self._pools(epoch, self.number):
                size = batches_in(self._rows(groups), self.batch_size)
                if start < min(size, left):
                    # The seed of the last pass is the one after the last: no two passes share an order.
                    seed = self.seed + epoch + (epoch == self.epochs - 1)
                    plan.append(Pool(groups=groups, first=start, last=min(size, left), seed=seed))
                start, left = max(0, start - size), left - size
                if left <= 0:
                    break
        return plan

    def _pools(self, epoch: int, number: int) -> list[list[int]]:
        """The groups of a stream in an epoch, packed into pools; in the last epoch a pool lies within one day."""
        by_day = epoch == self.epochs - 1
        day = [g.newest_s // DAY_S for g in self.index.groups]
        if by_day:
            order = sorted(range(len(day)), key=lambda g: (day[g], g))
        else:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(day)).tolist()
        dealt = np.zeros(self.streams, np.int64)
        pools: list[list[int]] = []
        for g in order:
            taker = int(dealt.argmin())
            dealt[taker] += self.index.groups[g].rows
            if taker != number:
                continue
            full = pools and self._rows(pools[-1]) + self.index.groups[g].rows > self.pool_rows
            if not pools or full or (by_day and day[pools[-1][-1]] != day[g]):
                pools.append([])
            pools[-1].append(g)
        return [sorted(pool) for pool in pools]

    def _rows(self, pool: list[int]) -> int:
        return sum(self.index.groups[g].rows for g in pool)

    def _steps_in(self, epoch: int) -> int:
        return min(
            sum(batches_in(self._rows(pool), self.batch_size) for pool in self._pools(epoch, number))
            for number in range(self.streams)
        )

    def _read(self, pool: list[int]) -> UserDays:
        """The rows of the pool that hold a positive, encoded."""
        tables = []
        for g in (self.index.groups[i] for i in pool):
            with pq.ParquetFile(g.path) as file:
                table = file.read_row_group(g.number, columns=COLUMNS)
            keep = read_targets(table, self.catalogue).lengths > 0
            tables.append(table if keep.all() else table.filter(pa.array(keep)))
            if len(tables[-1]) != g.rows:
                raise ValueError(f"{g.path} has changed while it was trained on; start the pre-training again")
        return UserDays(pa.concat_tables(tables), self.catalogue, self.config)
