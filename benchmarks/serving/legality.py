"""A million requests through the code that serves: is every item legal, unseen and allowed, and only once there?

    python -m benchmarks.serving.legality --root var --source simulated --requests 1000000 --seconds 3000

A million takes hours, so it is counted over runs: legality.json beside the table holds what each run counted, saved as
it goes, and every run has a seed of its own. Run it again until the table says a million.

Features come from the workspace's Feast store, answers from `serving.answering` and the release's program, as in the
server; only Triton is left out. Requests vary in user (one in ten unknown), k, beam, exclusions (half of them exclude
what the user was just given), muted authors, age, live events and the blocked items, which change all the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import commit
from benchmarks.serving.world import World, header, world_of
from feature_repo.online import OnlineFeatures
from models.onerec.features import NUM_FIELDS
from models.onerec.program import INPUTS
from serving.answering import Answering, Given
from serving.config import Rollout, ServingConfig
from serving.export.program import Program
from serving.features import DEGRADED, STALE, FeatureReader
from serving.route import Ask
from serving.routing import Routes, Routing, write_routes

BEAMS, KS = (16, 24), (1, 3, 5)
SAVE_EVERY = 5_000
NONE = np.zeros(0, np.int64)
FAULTS = ("failed", "illegal", "seen", "excluded", "blocked", "muted author", "too old", "duplicates", "wrong release")
About = dict[int, tuple[int, int]]  # author and upload time (0 unknown) of each item


class Requests:
    """Makes batches of requests and checks their answers against files."""

    def __init__(self, world: World, release: Path, seed: int) -> None:
        self.world, self.rng, self.release = world, np.random.default_rng(seed), release.name
        self.codes = world.codes[release.name]
        self.items, self.users = np.array(sorted(self.codes)), np.array(world.users)
        self.given: dict[int, list[int]] = {}
        self.counts: Counter[str] = Counter()

    def batch(self, size: int, authors: np.ndarray) -> list[Ask]:
        """One beam a batch, as requests that want the same are grouped by the server too."""
        rng, beam = self.rng, int(self.rng.choice(BEAMS))
        return [self._ask(rng, beam, authors) for _ in range(size)]

    def _ask(self, rng: np.random.Generator, beam: int, authors: np.ndarray) -> Ask:
        world = self.world
        user = int(rng.choice(self.users)) if rng.random() < 0.9 else int(rng.integers(1 << 40, 1 << 41))
        exclude = np.array(self.given.get(user, []), np.int64) if rng.random() < 0.5 else NONE
        live = np.zeros((0, NUM_FIELDS), np.int64)
        if rng.random() < 0.2:
            live = np.array([[rng.choice(self.items), 1, 1, world.now_s - 5, 9000, 10_000, 0b10]], np.int64)
        return Ask(
            user_id=user,
            k=int(rng.choice(KS)),
            now_s=world.now_s,
            exclude=np.concatenate([exclude, rng.choice(self.items, 3)]) if rng.random() < 0.3 else exclude,
            exclude_authors=rng.choice(authors, 2) if rng.random() < 0.05 else NONE,
            live=live,
            max_age_s=int(rng.integers(86400, 30 * 86400)) if rng.random() < 0.01 else 0,
            beam=beam,
            rerank=False,
        )

    def check(self, ask: Ask, given: Given | Exception, blocked: set[int], about: About) -> None:
        """Count what is wrong with an answer."""
        counts = self.counts
        counts["requests"] += 1
        if isinstance(given, Exception):
            counts["failed"] += 1
            return
        if given.kind in (DEGRADED, STALE):
            raise ValueError("the feature store does not answer, so nobody knows what was seen; mend it and run again")
        items = given.picked.items.tolist()
        counts["items"] += len(items)
        counts["short"] += len(items) < ask.k
        counts[given.kind] += 1
        counts["illegal"] += given.picked.illegal
        counts["illegal"] += sum(self.codes.get(i) != tuple(c) for i, c in zip(items, given.picked.sids.tolist()))
        seen, live = self.world.seen.get(ask.user_id, frozenset()), set(ask.live[:, 0].tolist())
        counts["seen"] += sum(i in seen or i in live for i in items)
        counts["excluded"] += len(set(ask.exclude.tolist()).intersection(items))
        counts["blocked"] += len(blocked.intersection(items))
        counts["muted author"] += sum(about[i][0] in ask.exclude_authors for i in items)
        if ask.max_age_s:
            counts["too old"] += sum(about[i][1] < ask.now_s - ask.max_age_s for i in items)
        counts["duplicates"] += len(items) - len(set(items))
        counts["wrong release"] += given.route.release_id != self.release
        self.given[ask.user_id] = items


def infer_with(program: Program, max_batch: int):
    """What the Triton model `onerec` does with a batch."""

    def infer(_: str, tensors: dict[str, np.ndarray], params: np.ndarray):
        k, beam, _ = params[0].tolist()
        batch = {name: torch.from_numpy(tensors[name]) for name in INPUTS if name != "beam"}
        width = min(beam, program.max_beam)
        parts = [
            program({n: t[at : at + max_batch] for n, t in batch.items()}, width, min(k, width))
            for at in range(0, len(params), max_batch)
        ]
        return tuple(torch.cat(column).numpy() for column in zip(*parts))

    return infer


class Tally:
    """What all runs counted, in a file. A killed run keeps what it had counted when it was saved last."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []

    def begin(self, **about: Any) -> dict[str, Any]:
        """A new run with a seed that none had before."""
        self.runs.append({"seed": len(self.runs), **about, "seconds": 0.0, "counts": {}})
        return self.runs[-1]

    @property
    def counts(self) -> Counter[str]:
        return sum((Counter(run["counts"]) for run in self.runs), Counter())

    def save(self) -> None:
        staged = self.file.with_suffix(".part")
        staged.write_text(json.dumps(self.runs, indent=1, sort_keys=True) + "\n")
        staged.replace(self.file)

    def table(self, command: str) -> str:
        counts = self.counts
        runs = "\n".join(
            f"| {run['seed']} | {run['day']} | {run['commit']} | {run['release']} | {run['program']} |"
            f" {run['items']:,} | {run['users']:,} | {run['counts'].get('requests', 0):,} | {run['seconds']:.0f} |"
            for run in self.runs
        )
        rows = "\n".join(f"| {name} | {counts[name]:,} |" for name in FAULTS)
        return f"""{header("Legality of what is returned", command)}
{counts["requests"]:,} requests with {counts["items"]:,} items; beams {", ".join(map(str, BEAMS))}.
{counts["cold_start"]:,} answers were cold starts; {counts["short"]:,} held fewer items than asked for, by
their filters.

| items (or answers) that were | count |
|---|---|
{rows}

| run (seed) | day | commit | release | program | items in the catalogue | users with features | requests | seconds |
|---|---|---|---|---|---|---|---|---|
{runs}
"""


def count(requests: Requests, answering: Answering, routing: Routing, batch: int, about: About) -> None:
    """One batch, with other items blocked than in the one before."""
    blocked = requests.rng.choice(requests.items, 20, replace=False)
    routing.now = dataclasses.replace(routing.now, blocked=blocked)
    asks = requests.batch(batch, routing.now.production.author)
    for ask, given in zip(asks, answering.answer(asks)):
        requests.check(ask, given, set(blocked.tolist()), about)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these, with fewer requests")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    release, world = world_of(args.root, args.source)
    base, config = args.root.resolve() / args.source, ServingConfig(max_batch=args.batch, threads=args.threads)
    store = OnlineFeatures(base / "features", base / "feature_store")
    reader = FeatureReader(store, timeout_s=60, cache_users=config.cache_users, stale_s=config.stale_s)
    program, tally, started = Program.load(release), Tally(args.out / "legality.json"), time.perf_counter()
    before = tally.counts["requests"]
    run = tally.begin(
        day=f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        commit=commit(),
        release=release.name,
        program=program.kind,
        items=len(world.codes[release.name]),
        users=len(world.users),
    )
    requests = Requests(world, release, run["seed"])
    command = f"python -m benchmarks.serving.legality --source {args.source} --requests {args.requests}"

    def save() -> None:
        run["counts"], run["seconds"] = dict(requests.counts), round(time.perf_counter() - started, 1)
        tally.save()
        (args.out / "legality.md").write_text(tally.table(command))

    with tempfile.TemporaryDirectory() as state:
        write_routes(Path(state), Routes(epoch=1, production=str(release.resolve()), rollout=Rollout()))
        routing = Routing(Path(state), "legality", print)
        answering = Answering(reader, routing, infer_with(program, args.batch), config)
        route, saved = routing.now.production, 0
        about = dict(zip(route.catalogue.item_ids.tolist(), zip(route.author.tolist(), route.upload_s.tolist())))
        while (left := args.requests - before - requests.counts["requests"]) > 0:
            if time.perf_counter() - started > args.seconds:
                break
            count(requests, answering, routing, min(args.batch, left), about)
            if requests.counts["requests"] - saved >= SAVE_EVERY:
                saved = requests.counts["requests"]
                save()
                print(f"{before + saved:,} requests, {time.perf_counter() - started:.0f} s", flush=True)
        routing.close()
    save()
    print((args.out / "legality.md").read_text())
    return int(any(tally.counts[name] for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
