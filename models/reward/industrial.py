"""Industrial rewards (TR section 2.4.4): rules that steer the share of a class of items in what is shown.

    {"name": "content farms", "authors": [17, 23], "share": 0.05, "factor": 0.5}
    {"name": "new items", "uploaded_within_days": 3, "share": 0.10, "factor": 1.5}
    {"name": "long tail", "popularity_rank_from": 5000, "share": 0.20, "factor": 1.5}

A rule marks items and names the share of exposure they should have. A factor under 1 multiplies the reward of marked
items while their share is above the target; a factor over 1 boosts it while their share is below. The share is that of
the last `window` exposures, which the caller reports by `observe`. Rules work on rewards, before advantages; rewards
are taken to be positive, as P-Scores are.

Legend: B users, G generated items a user, N items of the catalogue.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.onerec.features import Catalogue
from models.reward.reward import Reward, RewardInput

DAY_S = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Which items (an item must meet every selector that is given), the target share and the factor."""

    name: str
    share: float
    factor: float
    tags: tuple[int, ...] = ()
    authors: tuple[int, ...] = ()
    item_ids: tuple[int, ...] = ()
    uploaded_within_days: float | None = None
    popularity_rank_from: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(
                f"rule {self.name!r}: share is {self.share}; the target share of exposure lies between 0 and 1"
            )
        if not self.factor > 0 or self.factor == 1:
            raise ValueError(
                f"rule {self.name!r}: factor is {self.factor}; give one between 0 and 1 to show less above the share, "
                "or over 1 to show more below it"
            )
        if not any([*self._lists(), self.uploaded_within_days is not None, self.popularity_rank_from is not None]):
            raise ValueError(
                f"rule {self.name!r} marks every item; name tags, authors, item_ids, uploaded_within_days or "
                "popularity_rank_from"
            )
        if self.uploaded_within_days is not None and not self.uploaded_within_days > 0:
            raise ValueError(
                f"rule {self.name!r}: uploaded_within_days is {self.uploaded_within_days}; give an age in days over 0"
            )
        if self.popularity_rank_from is not None and self.popularity_rank_from < 1:
            raise ValueError(
                f"rule {self.name!r}: popularity_rank_from is {self.popularity_rank_from}; rank 0 is the most popular "
                "item, so 0 would mark every item"
            )

    def _lists(self) -> tuple[tuple[int, ...], ...]:
        return self.tags, self.authors, self.item_ids


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Rules from a JSON file: a list of objects with the fields of `Rule`. Raises ValueError naming what is wrong."""
    raw = json.loads(path.read_text())
    if not isinstance(raw, list):
        raise ValueError(f"{path} holds a {type(raw).__name__}; write a list of rules")
    return tuple(parse_rule(entry) for entry in raw)


def parse_rule(entry: dict[str, Any]) -> Rule:
    """One rule from JSON; unknown and missing fields are refused by name."""
    fields = {f.name: f for f in dataclasses.fields(Rule)}
    name = entry.get("name", "(without a name)")
    if unknown := sorted(set(entry) - set(fields)):
        raise ValueError(f"rule {name!r}: unknown fields {unknown}; a rule has {sorted(fields)}")
    required = [f.name for f in fields.values() if f.default is dataclasses.MISSING]
    if missing := sorted(set(required) - set(entry)):
        raise ValueError(f"rule {name!r}: fields {missing} are missing")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return Rule(**values)


@dataclasses.dataclass(frozen=True)
class Traits:
    """What rules look at of each item of the catalogue: id, author, tags, upload time, rank by positives (0 = most)."""

    item_ids: np.ndarray
    author_N: np.ndarray
    tags: pa.Array
    uploaded_s_N: np.ndarray
    rank_N: np.ndarray

    @classmethod
    def read(cls, items: Path, catalogue: Catalogue, popular_ids: np.ndarray) -> Traits:
        """From an items table (item_id, author_id, tags, upload_time) and item ids, most popular first."""
        table = pq.read_table(items, columns=["item_id", "author_id", "tags", "upload_time"])
        row = Catalogue(table["item_id"].to_numpy()).index(catalogue.item_ids)
        # One empty row behind the table stands for the items that it lacks.
        index = pa.array(np.where(row < len(table), row, -1), pa.int64(), mask=row == len(table))
        author = pc.fill_null(table["author_id"].combine_chunks().take(index).cast(pa.int64()), -1)
        uploaded = table["upload_time"].combine_chunks().cast(pa.timestamp("s", "UTC"), safe=False).cast(pa.int64())
        rank = np.full(len(catalogue) + 1, len(catalogue))
        known = catalogue.index(popular_ids)
        rank[known[::-1]] = np.arange(len(known))[::-1]
        return cls(
            catalogue.item_ids,
            author.to_numpy(zero_copy_only=False),
            table["tags"].combine_chunks().take(index),
            pc.fill_null(uploaded.take(index), 0).to_numpy(zero_copy_only=False),
            rank[:-1],
        )

    def marked(self, rule: Rule, now_s: int) -> np.ndarray:
        """Which items a rule marks, [N] bool. Raises ValueError when it marks none or every item."""
        N = len(self.item_ids)
        mark = np.ones(N, bool)
        if rule.tags:
            offsets, flat = np.asarray(self.tags.value_lengths().fill_null(0)), np.asarray(self.tags.flatten())
            mark &= np.bincount(np.repeat(np.arange(N), offsets), np.isin(flat, rule.tags), minlength=N) > 0
        if rule.authors:
            mark &= np.isin(self.author_N, rule.authors)
        if rule.item_ids:
            mark &= np.isin(self.item_ids, rule.item_ids)
        if rule.uploaded_within_days is not None:
            mark &= self.uploaded_s_N >= now_s - rule.uploaded_within_days * DAY_S
        if rule.popularity_rank_from is not None:
            mark &= self.rank_N >= rule.popularity_rank_from
        if mark.all():
            raise ValueError(f"rule {rule.name!r} marks all {N} items; narrow it, a rule may not silence everything")
        if not mark.any():
            raise ValueError(f"rule {rule.name!r} marks none of {N} items; check its tags, authors, ids, age or rank")
        return mark


class IndustrialReward:
    """A reward with rules on top: itself a `Reward`. `shares` is the exposure of each rule's class in the window."""

    def __init__(self, inner: Reward, rules: tuple[Rule, ...], marked: list[np.ndarray], window: int) -> None:
        if window < 1:
            raise ValueError(f"the exposure window is {window}; it must hold at least one exposure")
        if len({rule.name for rule in rules}) < len(rules):
            raise ValueError("two industrial rules share a name; each is reported under its own")
        silenced = [mark for rule, mark in zip(rules, marked) if rule.factor < 1]
        if silenced and np.any(silenced, axis=0).all():
            raise ValueError(
                f"rules {[r.name for r in rules if r.factor < 1]} together mark every item; leave some items unmarked"
            )
        self.inner, self.rules, self.window = inner, rules, window
        self.marked_RN = torch.from_numpy(np.stack(marked)) if marked else torch.zeros(0, 1, dtype=torch.bool)
        self._exposed: deque[Tensor] = deque()
        self._seen, self._count = 0, torch.zeros(len(rules))

    def observe(self, item_BG: Tensor) -> None:
        """Items that were exposed, in any shape; -1 is no item. Older exposures leave the window."""
        item = item_BG.flatten().cpu()
        mark_RE = self.marked_RN[:, item[item >= 0]][:, -self.window :]
        self._exposed.append(mark_RE)
        self._seen += mark_RE.shape[1]
        self._count += mark_RE.sum(1)
        while self._seen > self.window:
            drop = self._seen - self.window
            oldest = self._exposed.popleft()
            self._count -= oldest[:, :drop].sum(1)
            self._seen -= min(drop, oldest.shape[1])
            if oldest.shape[1] > drop:
                self._exposed.appendleft(oldest[:, drop:])

    @property
    def shares(self) -> dict[str, float]:
        """Share of each rule's class among the exposures of the window; empty before the first exposure."""
        return {r.name: (c / self._seen).item() for r, c in zip(self.rules, self._count)} if self._seen else {}

    def __call__(self, generated: RewardInput) -> Tensor:
        reward_BG, shares = self.inner(generated), self.shares
        item = generated.item_BG
        for rule, marked_N in zip(self.rules, self.marked_RN.to(item.device)):
            share = shares.get(rule.name, rule.share)
            if share > rule.share if rule.factor < 1 else share < rule.share:
                reward_BG = torch.where(marked_N[item.clamp_min(0)] & (item >= 0), rule.factor * reward_BG, reward_BG)
        return reward_BG
