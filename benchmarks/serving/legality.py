"""A million requests through the code that serves: is every item legal, unseen and allowed, and only once there?

    python -m benchmarks.serving.legality --root var --source simulated --requests 1000000 --jobs 2 --seconds 3000

A million takes hours on two cores, so it is counted over runs: legality.json beside the table holds what each run
counted, saved as it goes, and every run has a seed of its own. Run it again until the table says a million. With
--jobs several runs share the rest of the million, a process each.

Features come from the workspace's Feast store, answers from `serving.answering` and the release's program, as in the
server; only Triton is left out. Requests vary in user (one in ten unknown), k, beam, exclusions (half of them exclude
what the user was just given), muted authors, age, live events and the blocked items, which change all the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import commit
from benchmarks.serving.legality_tally import BEAMS, FAULTS, Tally
from benchmarks.serving.world import World, world_of
from feature_repo.online import OnlineFeatures
from models.onerec.features import NUM_FIELDS
from models.onerec.program import INPUTS
from serving.answering import Answering, Given
from serving.config import Rollout, ServingConfig
from serving.export.program import Program
from serving.features import DEGRADED, STALE, FeatureReader
from serving.route import Ask
from serving.routing import Routes, Routing, write_routes

KS = (1, 3, 5)
SAVE_EVERY = 5_000
NONE = np.zeros(0, np.int64)
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


def count(requests: Requests, answering: Answering, routing: Routing, batch: int, about: About) -> None:
    """One batch, with other items blocked than in the one before."""
    blocked = requests.rng.choice(requests.items, 20, replace=False)
    routing.now = dataclasses.replace(routing.now, blocked=blocked)
    asks = requests.batch(batch, routing.now.production.author)
    for ask, given in zip(asks, answering.answer(asks)):
        requests.check(ask, given, set(blocked.tolist()), about)


def work(args: argparse.Namespace, seed: int, requests: int, found: Queue) -> None:
    """One run. Puts (seed, what was counted so far, seconds so far, is it over) into `found` as it goes."""
    torch.set_num_threads(args.threads)
    release, world = world_of(args.root, args.source)
    base, config = args.root.resolve() / args.source, ServingConfig(max_batch=args.batch, threads=args.threads)
    store = OnlineFeatures(base / "features", base / "feature_store")
    reader = FeatureReader(store, timeout_s=60, cache_users=config.cache_users, stale_s=config.stale_s)
    program, started, made = Program.load(release), time.perf_counter(), Requests(world, release, seed)

    def tell(over: bool) -> None:
        found.put((seed, dict(made.counts), round(time.perf_counter() - started, 1), over))

    with tempfile.TemporaryDirectory() as state:
        write_routes(Path(state), Routes(epoch=1, production=str(release.resolve()), rollout=Rollout()))
        routing = Routing(Path(state), "legality", print)
        answering = Answering(reader, routing, infer_with(program, args.batch), config)
        route, told = routing.now.production, 0
        about = dict(zip(route.catalogue.item_ids.tolist(), zip(route.author.tolist(), route.upload_s.tolist())))
        while (left := requests - made.counts["requests"]) > 0 and time.perf_counter() - started < args.seconds:
            count(made, answering, routing, min(args.batch, left), about)
            if made.counts["requests"] - told >= SAVE_EVERY:
                told = made.counts["requests"]
                tell(False)
        routing.close()
    tell(True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these, with fewer requests")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of a run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    release, world = world_of(args.root, args.source)
    tally, spawn = Tally(args.out / "legality.json"), multiprocessing.get_context("spawn")
    before, found, begun = tally.counts["requests"], spawn.Queue(), time.perf_counter()
    about = {"day": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", "commit": commit(), "release": release.name}
    about |= {"program": Program.load(release).kind, "items": len(world.codes[release.name]), "users": len(world.users)}
    command = f"python -m benchmarks.serving.legality --source {args.source} --requests {args.requests}"
    runs = {run["seed"]: run for run in (tally.begin(**about) for _ in range(args.jobs))}
    share = -(-max(args.requests - before, 0) // args.jobs)
    workers = {seed: spawn.Process(target=work, args=(args, seed, share, found)) for seed in runs}
    for worker in workers.values():
        worker.start()
    while workers:
        if found.empty():
            if dead := [seed for seed, worker in workers.items() if worker.exitcode]:
                for seed in dead:
                    del workers[seed]
                    runs[seed]["broken"] = True
            time.sleep(0.1)
            continue
        seed, runs[seed]["counts"], runs[seed]["seconds"], over = found.get()
        tally.save()
        (args.out / "legality.md").write_text(tally.table(command))
        if over:
            workers.pop(seed).join()
        print(f"{tally.counts['requests']:,} requests, {time.perf_counter() - begun:.0f} s", flush=True)
    print(tally.table(command))
    if broken := [seed for seed, run in runs.items() if run.get("broken")]:
        print(f"the runs of seeds {broken} ended early, see above; what they had counted is in the table")
    return int(bool(broken) or any(tally.counts[name] for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
