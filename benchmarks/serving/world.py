"""What the serving benchmarks share: a server on a workspace's production release, and the check of every answer.

    with serving(root, source, config) as (server, world): ...

`world.check(query, answer)` looks every item up in files, not in what the server has in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.machine import commit, hardware
from models.training.checkpoint import Tokenizer
from releases.channels import read_channel
from releases.manifest import load_release
from releases.object_store import DirectoryStore
from serving.config import ServingConfig
from serving.protocol import Answer, Query
from serving.triton_server import TritonServer


@dataclasses.dataclass
class World:
    """Users with features (and as many again without), what each has seen, the codes of each release's items."""

    users: list[int]
    now_s: int
    seen: dict[int, frozenset[int]]
    codes: dict[str, dict[int, tuple[int, ...]]]
    faults: Counter = dataclasses.field(default_factory=Counter)

    def query(self, rng: np.random.Generator, k: int) -> Query:
        """A request: mostly known users, some unknown, some with items to exclude."""
        known = rng.random() < 0.9
        user = int(rng.choice(self.users)) if known else int(rng.integers(1 << 40, 1 << 41))
        some = next(iter(self.codes.values()))
        exclude = tuple(int(i) for i in rng.choice(list(some)[:5000], 5)) if rng.random() < 0.3 else ()
        return Query(user_id=user, k=k, now_s=self.now_s, exclude=exclude)

    def check(self, query: Query, answer: Answer) -> None:
        """Count answers and faults: illegal, seen, excluded, duplicate items, and short answers.

        An answer that says it had no features cannot know what was seen: such are counted apart, as degraded.
        """
        codes, items = self.codes[answer.release_id], answer.item_ids
        self.faults["answers"] += 1
        self.faults["items"] += len(items)
        self.faults["illegal"] += sum(codes.get(item) != sid for item, sid in zip(items, answer.sids))
        seen = len(self.seen.get(query.user_id, frozenset()).intersection(items))
        unknowing = answer.degraded and not answer.stale
        self.faults["degraded"] += unknowing
        self.faults["seen in degraded answers" if unknowing else "seen"] += seen
        self.faults["excluded"] += len(set(query.exclude).intersection(items))
        self.faults["duplicates"] += len(items) - len(set(items))
        self.faults["short"] += len(items) < query.k

    def faults_text(self) -> str:
        f = self.faults
        names = ("illegal", "seen", "excluded", "duplicates", "short", "degraded", "seen in degraded answers")
        return f"{f['answers']:,} answers with {f['items']:,} items checked: " + ", ".join(
            f"{f[name]:,} {name}" for name in names
        )


def codes_of(release: Path) -> dict[int, tuple[int, ...]]:
    tokenizer = Tokenizer.load(release / "tokenizer")
    return dict(zip(tokenizer.catalogue.item_ids.tolist(), map(tuple, tokenizer.sid_NL.tolist())))


def world_of(root: Path, source: str, folder: Path | None = None) -> tuple[Path, World]:
    """A release (default: the one in production) and the users of a workspace. ValueError where there is none."""
    base = Path(root).resolve() / source
    if folder is None:
        store = DirectoryStore(base / "store")
        if (channel := read_channel(store, "production")) is None:
            raise ValueError(f"{base} has no production release; run `make daily` first, or give --root and --source")
        folder, _ = load_release(store, channel.release_id)
    files = sorted((base / "features" / "user_seen").glob("dt=*/part-0.parquet"))
    if not files:
        raise ValueError(f"{base}/features has no users; run `make daily` first")
    seen: dict[int, set[int]] = {}
    newest = dt.datetime.min.replace(tzinfo=dt.UTC)
    for file in files:
        table = pq.read_table(file, columns=["user_id", "seen_item_id", "event_timestamp"])
        newest = max(newest, pc.max(table["event_timestamp"]).as_py())
        for user, items in zip(table["user_id"].to_pylist(), table["seen_item_id"].to_pylist()):
            seen.setdefault(user, set()).update(items)
    return folder, World(
        users=sorted(seen),
        now_s=int(newest.timestamp()) + 1,
        seen={user: frozenset(items) for user, items in seen.items()},
        codes={folder.name: codes_of(folder)},
    )


@contextlib.contextmanager
def serving(
    root: Path, source: str, config: ServingConfig, log: Path, folder: Path | None = None
) -> Iterator[tuple[TritonServer, World]]:
    """A server on `folder` (default: the production release of the workspace)."""
    folder, world = world_of(root, source, folder)
    base = Path(root).resolve() / source
    with TritonServer(
        release=folder, features=base / "features", feature_store=base / "feature_store", log=log, config=config
    ) as server:
        yield server, world


def header(title: str, command: str) -> str:
    """The head of a table: what, on what, with which code, when."""
    day = dt.datetime.now(dt.UTC).date().isoformat()
    busy = os.getloadavg()[1]  # other work makes every latency an upper bound
    on = f"On {hardware()}, commit {commit()}, {day}, five minutes' load average {busy:.1f}."
    return f"# {title}\n\n{on} Made by\n\n```sh\n{command}\n```\n"
