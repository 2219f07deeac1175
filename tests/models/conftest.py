"""A tiny synthetic source in the shape the models read: an items table and training sets with the contract's columns.

Users like one of `TOPICS` topics; items of a topic share a tag and two authors, so that there is something to learn.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.onerec.config import OneRecConfig
from models.onerec.features import EVENT_FIELDS, LABELS, Catalogue
from models.onerec.model import OneRec
from models.tokenizer.refresh import refresh_tokenizer
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer
from models.training.data import PATHWAYS

torch.set_num_threads(1)  # matrices are tiny: on a busy machine a second thread makes them several times slower

DAY_S = 86_400
FIRST_DAY_S = 1_651_708_800  # 2022-05-05 00:00 UTC
TOPICS, STATIC = 4, 3
CLICK, LONG_VIEW, LIKE, HATE = (1 << LABELS.index(name) for name in ("click", "long_view", "like", "hate"))
ALL_KNOWN = (1 << len(LABELS)) - 1
SHOWN_FIELDS = ("item_id", "label", "label_known", "play_ms", "duration_ms")


@dataclasses.dataclass
class Row:
    """One user and day. Events are [n, 7] in the order of EVENT_FIELDS, impressions [n, 5] in that of SHOWN_FIELDS."""

    user_id: int
    now_s: int = FIRST_DAY_S
    static: tuple[int, ...] = (1, 2, 3)
    short: np.ndarray | list = dataclasses.field(default_factory=list)
    positive: np.ndarray | list = dataclasses.field(default_factory=list)
    lifelong: np.ndarray | list = dataclasses.field(default_factory=list)
    seen: np.ndarray | list = dataclasses.field(default_factory=list)
    shown: np.ndarray | list = dataclasses.field(default_factory=list)


def write_training_set(path: Path, rows: list[Row]) -> Path:
    """A training or evaluation partition: identity, static codes, three pathways, seen items, the day's impressions."""
    lists = pa.list_(pa.int64())
    columns: dict[str, pa.Array] = {
        "user_id": pa.array([r.user_id for r in rows], pa.int64()),
        "event_timestamp": pa.array([r.now_s * 1000 for r in rows], pa.timestamp("ms", "UTC")),
        "static_codes": pa.array([list(r.static) for r in rows], lists),
        "seen_item_id": pa.array([list(r.seen) for r in rows], lists),
    }
    for name in PATHWAYS:
        events = [np.array(getattr(r, name), np.int64).reshape(-1, len(EVENT_FIELDS)) for r in rows]
        for i, field in enumerate(EVENT_FIELDS):
            columns[f"{name}_{field}"] = pa.array([e[:, i].tolist() for e in events], lists)
    shown = [np.array(r.shown, np.int64).reshape(-1, len(SHOWN_FIELDS)) for r in rows]
    for i, field in enumerate(SHOWN_FIELDS):
        columns[field] = pa.array([s[:, i].tolist() for s in shown], lists)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_items(path: Path, ids: list[int]) -> Path:
    """An items table: topic = id mod TOPICS gives the tag and the author; one item in seven has no content at all."""
    bare = [i % 7 == 3 for i in ids]
    table = pa.table(
        {
            "item_id": pa.array(ids, pa.int64()),
            "author_id": pa.array([-1 if b else i % (2 * TOPICS) for i, b in zip(ids, bare)], pa.int64()),
            "tags": pa.array([None if b else [i % TOPICS] for i, b in zip(ids, bare)], pa.list_(pa.int32())),
            "caption": pa.array([None if b else f"topic{i % TOPICS} clip" for i, b in zip(ids, bare)], pa.string()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def simulate_days(folder: Path, *, users: int, items: int, days: int, shown: int, seed: int) -> list[Path]:
    """Training sets of consecutive days; a user's history of a day is what the days before showed."""
    rng = np.random.default_rng(seed)
    history: dict[int, list[list[int]]] = {u: [] for u in range(users)}
    paths = []
    for day in range(days):
        now, rows = FIRST_DAY_S + day * DAY_S, []
        for user in range(users):
            past = np.array(history[user], np.int64).reshape(-1, len(EVENT_FIELDS))
            liked = past[(past[:, 6] & LIKE) > 0]
            impressions = []
            for item in rng.choice(items, shown, replace=False).tolist():
                wanted = item % TOPICS == user % TOPICS
                label = (CLICK | LONG_VIEW | LIKE) if wanted else (HATE if rng.random() < 0.2 else 0)
                play = 9_000 if wanted else 500
                impressions.append([item, label, ALL_KNOWN, play, 10_000])
                history[user].append([item, item % (2 * TOPICS), item % TOPICS, now + 60, play, 10_000, label])
            rows.append(
                Row(user, now, (user % TOPICS, 5, 8191), past[-20:], liked, liked[:-5], past[:, 0], impressions)
            )
        paths.append(write_training_set(folder / f"dt=2022-05-{5 + day:02d}" / "part-0.parquet", rows))
    return paths


@dataclasses.dataclass
class World:
    """Paths of a small source: items, training sets of `days`, the day after as evaluation set, a fitted tokenizer."""

    items: Path
    training: list[Path]
    evaluation: Path
    tokenizer: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """48 items, 64 users, two training days and an evaluation day. Read only: tests write elsewhere."""
    root = tmp_path_factory.mktemp("world")
    days = simulate_days(root / "features", users=64, items=48, days=3, shown=8, seed=1)
    items, tokenizer = write_items(root / "items.parquet", list(range(48))), root / "tokenizer"
    tokenizer.mkdir()
    refresh_tokenizer(
        items=items, training_sets=days[:2], previous=None, out=tokenizer, seed=3, progress=lambda _: None
    )
    return World(items, days[:2], days[2], tokenizer)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Models built in a test start from the same weights in every run."""
    torch.manual_seed(0)


def small_sids(items: int, codebook_size: int, seed: int) -> np.ndarray:
    """Random unique code tuples [items, 3]."""
    flat = np.random.default_rng(seed).choice(codebook_size**3, items, replace=False)
    return np.stack([flat // codebook_size**2, flat // codebook_size % codebook_size, flat % codebook_size], 1)


def small_model(items: int = 20, codebook_size: int = 4, seed: int = 0, **changes) -> tuple[OneRec, Tokenizer]:
    """An untrained model with visible item residuals and biases, and the tokenizer it belongs to."""
    torch.manual_seed(seed)
    sid = small_sids(items, codebook_size, seed)
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "heads": 2,
        "ffn_dim": 24,
        "experts": 4,
        "expert_dim": 8,
        "short_len": 5,
        "positive_len": 6,
        "lifelong_len": 7,
        "lifelong_queries": 2,
        "author_buckets": 32,
        "tag_buckets": 16,
    }
    config = OneRecConfig(codebook_size=codebook_size, items=items, static_features=STATIC, **(sizes | changes))
    model = OneRec(config, torch.from_numpy(sid)).eval()
    with torch.no_grad():  # zero at the start; random here, so that a test sees whether they are used
        have = dict(model.named_parameters())  # a variant lacks some of them
        for name in ("item_residual.weight", "item_bias_N", "code_bias_LK", "pathways.no_life_D"):
            if name in have:
                have[name].copy_(torch.randn_like(have[name]) * 0.3)
    return model, Tokenizer(Catalogue(np.arange(items) * 10), sid, Trie.build(sid, codebook_size), codebook_size)


def random_batch(model: OneRec, lengths: list[tuple[int, int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """A right-aligned batch with the given (short, positive, lifelong) lengths of each user."""
    generator, c = torch.Generator().manual_seed(seed), model.config
    limits = [c.items + 1, c.author_buckets, c.tag_buckets, 32, 14, 24, 256]
    batch = {"static": torch.randint(c.static_buckets, (len(lengths), STATIC), generator=generator)}
    for which, name in enumerate(PATHWAYS):
        own = [row[which] for row in lengths]
        L = max(own)
        batch[name] = torch.stack([torch.randint(n, (len(own), L), generator=generator) for n in limits], -1)
        batch[f"{name}_mask"] = torch.arange(L)[None] >= L - torch.tensor(own)[:, None]
    return batch
