"""The row groups of training sets: what planning a stream needs to know of the files, and no rows.

index = Index.scan(paths, catalogue)             # index.rows, index.targets, index.groups
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from models.onerec.features import Catalogue
from models.training.data import TARGET_COLUMNS, moments, read_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A row group: its rows that hold a positive, their targets, and targets by the moment they are as of."""

    path: Path
    number: int
    rows: int
    targets: int
    newest_s: int
    targets_at: dict[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """What planning needs of the files: counts a row group, never rows. `newest_s` is over all rows."""

    groups: tuple[Group, ...]
    newest_s: int

    @classmethod
    def scan(cls, paths: list[Path], catalogue: Catalogue) -> Index:
        """Reads three columns once. Raises ValueError when there are no rows, or not one positive to learn from."""
        groups, newest = [], None
        for path in sorted(paths):
            with pq.ParquetFile(path) as file:
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number, columns=["event_timestamp", *TARGET_COLUMNS])
                    if not len(table):
                        continue
                    now_s, count = moments(table), read_targets(table, catalogue).lengths
                    newest = max(newest or 0, int(now_s.max()))
                    at, where = np.unique(now_s, return_inverse=True)
                    by_moment = np.bincount(where, weights=count).astype(np.int64)
                    group = Group(
                        path=path,
                        number=number,
                        rows=int((count > 0).sum()),
                        targets=int(count.sum()),
                        newest_s=int(now_s.max()),
                        targets_at=dict(zip(at.tolist(), by_moment.tolist())),
                    )
                    groups += [group] if group.rows else []
        if newest is None:
            raise ValueError(
                f"no training rows in {', '.join(map(str, paths))}; run the features step of these days again"
            )
        if not groups:
            raise ValueError(
                "no positive impression (long_view, like, follow, forward) in the training rows: nothing to learn"
            )
        return cls(groups=tuple(groups), newest_s=newest)

    @property
    def rows(self) -> int:
        return sum(g.rows for g in self.groups)

    @property
    def targets(self) -> int:
        return sum(g.targets for g in self.groups)
