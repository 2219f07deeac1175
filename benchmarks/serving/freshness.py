"""How fast what happens is served: event to changed recommendation, upload to first recommendation, blocking an item.

    python -m benchmarks.serving.freshness --root var --source simulated

On the local stack: Feast's SQLite store, Triton, a controller that follows the store. An event is pushed through Feast
and the user asked again and again until the answer changes and lacks the item; an upload is refreshed into a release
(frozen codebooks), promoted, loaded, and its items asked for by age until somebody gets one. Hops end to end make up
the total; the poll between two tries is part of it. The workspace is not written to: feature store and release are
copies.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.serving.world import World, header, world_of
from feature_repo.push import LiveEvent, LiveEvents
from feature_repo.store import apply
from releases.channels import promote
from releases.manifest import load_release
from releases.object_store import DirectoryStore
from serving import blocklist
from serving.client import RecommendClient
from serving.config import ServingConfig
from serving.controller import Controller
from serving.refresh_items import refresh_items
from serving.triton_server import TritonServer

K, LIMIT_S = 10, 60.0
Hops = dict[str, list[float]]


class Clock:
    """Times from one hop to the next, and from the first to the last."""

    def __init__(self, into: Hops) -> None:
        self.into, self.start = into, time.perf_counter()
        self.last = self.start

    def hop(self, name: str) -> None:
        now = time.perf_counter()
        self.into[name].append(now - self.last)
        self.last = now

    def done(self) -> None:
        self.into["total"].append(self.last - self.start)


def until(true: Callable[[], bool], what: str) -> None:
    limit = time.perf_counter() + LIMIT_S
    while not true():
        if time.perf_counter() > limit:
            raise RuntimeError(f"{what}: not within {LIMIT_S:g} s")


def events(client: RecommendClient, live: LiveEvents, world: World, rounds: int, rng: np.random.Generator) -> Hops:
    """A long view of the first recommended item."""
    hops: Hops = defaultdict(list)
    for user in rng.choice(world.users, rounds, replace=False).tolist():
        before = client.recommend(user, K, now_s=world.now_s)
        item = before.item_ids[0]
        clock = Clock(hops)
        at = datetime.fromtimestamp(world.now_s, UTC)
        live.push([LiveEvent(user_id=user, item_id=item, event_time=at, labels=("is_click", "is_long_view"))])
        clock.hop("push through Feast")
        until(
            lambda user=user, item=item: item not in client.recommend(user, K, now_s=world.now_s + 1).item_ids,
            f"the event of user {user}",
        )
        clock.hop("request until it counts")
        clock.done()
        after = client.recommend(user, K, now_s=world.now_s + 1)
        hops["changed scores"].append(float(after.scores[: K - 1] != before.scores[1:]))
    return hops


def uploads(
    client: RecommendClient, store: DirectoryStore, server: TritonServer, world: World, rounds: int, base: str
) -> Hops:
    """Ten copies of known items under new ids, uploaded now, each round on top of the release before."""
    hops: Hops = defaultdict(list)
    table = pq.read_table(load_release(store, base)[0] / "items.parquet")
    highest = int(pa.compute.max(table["item_id"]).as_py())
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(rounds):
            new = table.slice(turn * 10, 10)
            ids = np.arange(10) + highest + 1 + 10 * turn
            new = _with(new, "item_id", pa.array(ids))
            new = _with(new, "upload_time", pa.array([world.now_s * 1000] * 10, pa.int64()))
            table = pa.concat_tables([table, new])
            clock = Clock(hops)
            pq.write_table(table, items := Path(scratch) / "items.parquet")
            clock.hop("items table written")
            base, _ = refresh_items(store=store, base=base, items=items, progress=lambda _: None)
            clock.hop("IDs, trie, release published")
            promote(store, base)
            clock.hop("promoted")
            until(lambda base=base: server.release.name == base or bool(time.sleep(0.005)), "the switch")
            clock.hop("noticed, verified, loaded, switched")
            fresh, users = set(ids.tolist()), itertools.cycle(world.users)
            until(
                lambda fresh=fresh, users=users: bool(fresh & set(_young(client, world, next(users)))),
                "the first recommendation of a new item",
            )
            clock.hop("requests of other and other users until a new item comes")
            clock.done()
    return hops


def _young(client: RecommendClient, world: World, user: int) -> list[int]:
    """What a user gets who asks for items of the last hour only, by the widest beam."""
    return client.recommend(user, K, now_s=world.now_s + 1, max_age_s=3600, beam=512).item_ids


def _with(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    at = table.column_names.index(column)
    return table.set_column(at, table.schema.field(column), values.cast(table.schema.field(column).type))


def blocks(client: RecommendClient, store: DirectoryStore, world: World, rounds: int) -> Hops:
    """The block list: from the call to an answer without the item."""
    hops: Hops = defaultdict(list)
    for user in world.users[:rounds]:
        item = client.recommend(user, K, now_s=world.now_s).item_ids[0]
        clock = Clock(hops)
        blocklist.block(store, [item], reason="benchmark")
        clock.hop("block list written")
        until(
            lambda user=user, item=item: item not in client.recommend(user, K, now_s=world.now_s).item_ids,
            f"blocking item {item}",
        )
        clock.hop("noticed by the server, request until it is gone")
        clock.done()
    return hops


def section(title: str, hops: Hops) -> str:
    lines = [f"\n## {title}\n", "| hop | p50 ms | p99 ms |", "|---|---|---|"]
    for name, seconds in hops.items():
        if name != "changed scores":
            p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
            lines.append(f"| {name} | {p50:.1f} | {p99:.1f} |")
    lines.append(f"\n{len(hops['total'])} rounds.")
    if changed := hops.get("changed scores"):
        lines[-1] += f" Also the scores of the other items changed in {np.mean(changed):.0%}."
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--uploads", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    folder, world = world_of(args.root, args.source)
    base = args.root.resolve() / args.source
    with tempfile.TemporaryDirectory(prefix="onerec-freshness-") as scratch:
        store, feature_store = DirectoryStore(Path(scratch) / "store"), Path(scratch) / "feature_store"
        shutil.copytree(folder, Path(scratch) / "store" / "releases" / folder.name)
        shutil.copytree(base / "feature_store", feature_store)
        apply(features=base / "features", feature_store=feature_store)
        promote(store, folder.name)
        live = LiveEvents(base / "features", feature_store)
        server = TritonServer(
            release=load_release(store, folder.name)[0],
            features=base / "features",
            feature_store=feature_store,
            log=args.out / "freshness-triton.log",
            config=ServingConfig(threads=1),
        )
        with server, Controller(server, store, log=lambda _: None), RecommendClient(server.grpc_url) as client:
            of_events = events(client, live, world, args.events, np.random.default_rng(0))
            of_blocks = blocks(client, store, world, 20)
            of_uploads = uploads(client, store, server, world, args.uploads, folder.name)
    command = f"python -m benchmarks.serving.freshness --source {args.source}"
    command += f" --events {args.events} --uploads {args.uploads}"
    text = header("Freshness", command)
    text += section("Event to changed recommendation", of_events)
    text += section("Upload to first recommendation", of_uploads)
    text += section("Blocked item to answers without it", of_blocks)
    (args.out / "freshness.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
