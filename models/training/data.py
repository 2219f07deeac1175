"""Training sets (Parquet, one row a user and day with its point-in-time features) to padded batches.

A table is encoded once into flat arrays; a batch is a gather. Histories are right-aligned, so the newest event always
has the same position. Batches are cut from length-sorted pools to spare padding; the order is seeded. `TrainingSet`
holds whole files; pre-training streams them a pool at a time (models/training/stream.py).

Legend: B users, L events, M targets, S static features.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.features import EVENT_FIELDS, NUM_FIELDS, POSITIVE_MASK, Catalogue, encode_events

PATHWAYS = ("short", "positive", "lifelong")
INPUTS = ("static", *PATHWAYS)
EVENTS_A_THREAD = 1 << 18  # fewer are encoded where they are


@dataclasses.dataclass
class Ragged:
    """Rows of different length, end to end: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def row(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def right_aligned(
        self, rows: np.ndarray, longest: int, dtype: type[np.integer] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The last `longest` entries of the rows, padded on the left: [B, L, ...] and mask [B, L]; L fits the batch.

        Row by row, as long histories are copied much faster than gathered; `dtype` is that of the values by default.
        """
        ends = self.offsets[rows + 1]
        length = np.minimum(ends - self.offsets[rows], longest)
        L = int(length.max(initial=0))
        mask = np.arange(L)[None, ::-1] < length[:, None]
        out = np.zeros((len(rows), L, *self.values.shape[1:]), dtype or self.values.dtype)
        for i, (end, n) in enumerate(zip(ends.tolist(), length.tolist())):
            out[i, L - n :] = self.values[end - n : end]
        return out, mask


def read_ragged(table: pa.Table, columns: list[str]) -> Ragged:
    """Parallel list columns as one ragged array; one column gives [n], several [n, columns]. Null lists are empty."""
    stacks, offsets = [], None
    for name in columns:
        chunk = table[name].combine_chunks()
        if chunk.null_count:
            chunk = pa.array([x or [] for x in chunk.to_pylist()], chunk.type)
        stacks.append(chunk.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
        own = np.concatenate([[0], np.cumsum(chunk.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
        if offsets is not None and not np.array_equal(own, offsets):
            raise ValueError(
                f"columns {columns[0]} and {name} have lists of different length; rebuild this day's features"
            )
        offsets = own
    assert offsets is not None
    return Ragged(stacks[0] if len(stacks) == 1 else np.stack(stacks, 1), offsets)


def each_once(item_N: np.ndarray, keep_N: np.ndarray, offsets: np.ndarray, items: int) -> Ragged:
    """Catalogue indices of each row's kept impressions in order of showing, each item once, known items only.

    item_N (catalogue index, `items` = unknown) and keep_N are of the impressions of all rows end to end.
    """
    rows = len(offsets) - 1
    row = np.repeat(np.arange(rows), np.diff(offsets))
    keep = keep_N & (item_N < items)
    row, item = row[keep], item_N[keep]
    _, first = np.unique(row * max(items, 1) + item, return_index=True)
    first.sort()
    return Ragged(item[first], np.concatenate([[0], np.cumsum(np.bincount(row[first], minlength=rows))]))


def moments(table: pa.Table) -> np.ndarray:
    """`event_timestamp` in seconds: what each row's context is as of."""
    return table["event_timestamp"].cast(pa.timestamp("s", "UTC"), safe=False).cast(pa.int64()).to_numpy()


TARGET_COLUMNS = ("item_id", "label")
CONTEXT_COLUMNS = ("user_id", "event_timestamp", "static_codes", *(f"{p}_{f}" for p in PATHWAYS for f in EVENT_FIELDS))


class UserDays:
    """Rows of a table (a user and a day each), encoded for one catalogue and configuration: contexts and targets."""

    def __init__(self, table: pa.Table, catalogue: Catalogue, config: OneRecConfig) -> None:
        self.config, self.catalogue = config, catalogue
        self.user_id = table["user_id"].to_numpy()
        self.now_s = moments(table)
        static = read_ragged(table, ["static_codes"])
        if (static.lengths != config.static_features).any():
            raise ValueError(
                f"static_codes has {np.unique(static.lengths).tolist()} entries, the model wants "
                f"{config.static_features}; the users table has changed its columns: bootstrap a new model"
            )
        self.static = static.values.reshape(-1, config.static_features)
        self.pathway: dict[str, Ragged] = {}
        for name in PATHWAYS:
            raw = read_ragged(table, [f"{name}_{field}" for field in EVENT_FIELDS])
            now = np.repeat(self.now_s, raw.lengths)
            self.pathway[name] = Ragged(self._encoded(raw.values.reshape(-1, NUM_FIELDS), now), raw.offsets)
        self.targets, self.others = read_targets(table, catalogue), read_targets(table, catalogue, liked=False)

    def __len__(self) -> int:
        return len(self.user_id)

    def _encoded(self, raw_N7: np.ndarray, now_s_N: np.ndarray) -> np.ndarray:
        """`encode_events` in several threads, as int32."""

        def part(first: int) -> np.ndarray:
            own = slice(first, first + EVENTS_A_THREAD)
            buckets = self.config.author_buckets, self.config.tag_buckets
            return encode_events(raw_N7[own], now_s_N[own], self.catalogue, *buckets).astype(np.int32)

        if len(raw_N7) <= EVENTS_A_THREAD:
            return part(0)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return np.concatenate(list(pool.map(part, range(0, len(raw_N7), EVENTS_A_THREAD))))

    def context(self, rows: np.ndarray) -> dict[str, Tensor]:
        """What the model's encoder takes: static, short, positive, lifelong and their masks."""
        limit = {
            "short": self.config.short_len,
            "positive": self.config.positive_len,
            "lifelong": self.config.lifelong_len,
        }
        batch = {"static": torch.from_numpy(self.static[rows])}
        for name in PATHWAYS:
            events, mask = self.pathway[name].right_aligned(rows, limit[name], np.int64)
            batch[name] = torch.from_numpy(events)
            batch[f"{name}_mask"] = torch.from_numpy(mask)
        return batch

    def batch(self, rows: np.ndarray, max_targets: int, max_others: int = 0) -> dict[str, Tensor]:
        """Context plus `targets` [B, M] (catalogue indices) and `target_mask` [B, M]; the newest M are kept.

        With `max_others` also `others` and `other_mask`, as many at most: what was shown and was no positive.
        """
        batch = self.context(rows)
        named = {"target": (self.targets, max_targets)} | ({"other": (self.others, max_others)} if max_others else {})
        for name, (items, most) in named.items():
            index, mask = items.right_aligned(rows, most)
            batch |= {f"{name}s": torch.from_numpy(index), f"{name}_mask": torch.from_numpy(mask)}
        return batch

    def batches(self, rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
        """Seeded shuffle of `rows` into batches of similar history length (pools of 32 batches, then shuffled)."""
        rng = np.random.default_rng(seed)
        rows = rng.permutation(rows)
        cost = self.pathway["short"].lengths + self.pathway["positive"].lengths
        batches = []
        for pool in np.array_split(rows, max(1, round(len(rows) / (32 * size)))):
            ordered = pool[np.argsort(cost[pool], kind="stable")]
            # Equal parts: a tail of a few rows would take a whole step at the full learning rate.
            batches += np.array_split(ordered, -(-len(ordered) // size)) if len(ordered) else []
        for i in rng.permutation(len(batches)):
            yield batches[i]


def read_targets(table: pa.Table, catalogue: Catalogue, liked: bool = True) -> Ragged:
    """The positives of each row of a table, or what was shown and was none; reads TARGET_COLUMNS only."""
    shown = read_ragged(table, list(TARGET_COLUMNS))
    item, label = shown.values.reshape(-1, 2).T
    return each_once(catalogue.index(item), ((label & POSITIVE_MASK) > 0) == liked, shown.offsets, len(catalogue))


class TrainingSet(UserDays):
    """All rows of some Parquet files, with everything that was shown and seen."""

    def __init__(self, paths: list[Path], catalogue: Catalogue, config: OneRecConfig) -> None:
        table = pa.concat_tables([pq.read_table(p) for p in sorted(paths)])
        if not len(table):
            raise ValueError(
                f"no training rows in {', '.join(map(str, paths))}; run the features step of these days again"
            )
        super().__init__(table, catalogue, config)
        self.seen = read_ragged(table, ["seen_item_id"])
        shown = read_ragged(table, ["item_id", "label", "label_known", "play_ms", "duration_ms"])
        index = catalogue.index(shown.values[:, :1])
        self.shown = Ragged(np.concatenate([index, shown.values[:, 1:]], 1), shown.offsets)
        self.shown_item_id = Ragged(shown.values[:, 0], shown.offsets)


def keep_pathways(batch: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The batch of a model that is shown only these of `INPUTS`: the others' histories are empty, static is 0."""
    out = dict(batch)
    if "static" not in names:
        out["static"] = torch.zeros_like(out["static"])
    for name in set(PATHWAYS) - set(names):
        out[name], out[f"{name}_mask"] = out[name][:, :0], out[f"{name}_mask"][:, :0]
    return out


def without_full_masks(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of histories of one length each, without their masks: the model then masks and packs nothing.

    Any other batch is returned as it is. Full histories at the published context are such a batch.
    """
    masks = [f"{name}_mask" for name in PATHWAYS]
    return {k: v for k, v in batch.items() if k not in masks} if all(batch[m].all() for m in masks) else batch


def never_empty(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with one masked event where a pathway has none at all.

    Processes that share a model must all use all of its parameters in a step, or their exchanges do not meet.
    """
    out = dict(batch)
    for name in PATHWAYS:
        if not out[name].shape[1]:
            out[name] = torch.nn.functional.pad(out[name], (0, 0, 1, 0))
            out[f"{name}_mask"] = torch.nn.functional.pad(out[f"{name}_mask"], (1, 0))
    return out


def batches_in(rows: int, size: int) -> int:
    """How many batches `UserDays.batches` makes of so many rows."""
    if not rows:
        return 0
    pools = max(1, round(rows / (32 * size)))
    small, more = divmod(rows, pools)
    return more * -(-(small + 1) // size) + (pools - more) * -(-small // size)
