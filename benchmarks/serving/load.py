"""Load on the whole road (client, Triton, Feast, model): by clients, held, and over the peak; every answer checked.

    python -m benchmarks.serving.load --root var --source simulated --seconds 10 --out build/serving

Writes load.md and load.svg into --out. A round is: closed loops of 1, 4 and 16 clients; requests at 70 % of their
highest throughput, at even distances and then at random; 3 times that throughput, and how long until latency is as
before. The generator shares the machine with the server, so what it reports is an upper bound of latency. What
queueing alone makes of p99/p50 (benchmarks/serving/queueing.py) stands beside what was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from benchmarks.serving.generator import Run, recovery
from benchmarks.serving.plot import percentiles_plot
from benchmarks.serving.queueing import Service, arrivals, floor_ratio
from benchmarks.serving.world import World, header, serving
from feature_repo.online import OnlineFeatures
from serving.config import ServingConfig
from serving.export.package import FOLDER, SIGNATURE, Signature, target_of

CLIENTS = (1, 4, 16)
HELD, OVERLOAD = 0.7, 3.0
EVEN, RANDOM, OVER = f"{HELD:.0%} of peak, even", f"{HELD:.0%} of peak, at random", f"{OVERLOAD:g} x peak, at random"
CLOSED = {count: "1 client" if count == 1 else f"{count} clients" for count in CLIENTS}
PHASES = (*CLOSED.values(), EVEN, RANDOM, OVER)


class Load:
    """All rounds: the runs of each phase, what the server says of each, and how fast it recovered."""

    def __init__(self, world: World, url: str, config: ServingConfig, k: int, seconds: float) -> None:
        self.world, self.url, self.config, self.k, self.seconds = world, url, config, k, seconds
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.own: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.recovered: list[float] = []
        self.peaks: list[float] = []
        self.batches: dict[int, np.ndarray] = {}  # of `onerec` at 70 %: users -> runs and their seconds

    async def phase(self, name: str, seed: int, load: Callable[[Run], Any]) -> Run:
        run, before = Run(self.world, self.url, self.k, seed), statistics(self.url)
        await load(run)
        after = statistics(self.url)
        self.runs[name].append(run)
        self.own[name].append(parts(before, after) | {"client_ms": 1000 * float(np.mean(run.seconds))})
        if name in (EVEN, RANDOM):
            for users, found in after["onerec"][4].items():
                self.batches[users] = (
                    self.batches.get(users, np.zeros(2)) + found - before["onerec"][4].get(users, np.zeros(2))
                )
        return run

    async def round(self, number: int) -> None:
        seed, seconds = 1000 * number, self.seconds
        for clients in CLIENTS:
            await self.phase(CLOSED[clients], seed + clients, lambda run, n=clients: run.closed(n, seconds))
        peak = max(self.runs[CLOSED[clients]][-1].rate for clients in CLIENTS)
        self.peaks.append(peak)
        rng = np.random.default_rng(seed)
        await self.phase(EVEN, seed + 70, lambda run: run.at(arrivals(HELD * peak, seconds, rng, even=True)))
        await self.phase(RANDOM, seed + 71, lambda run: run.at(arrivals(HELD * peak, 2 * seconds, rng)))
        await self.phase(OVER, seed + 300, lambda run: run.at(arrivals(OVERLOAD * peak, seconds / 2, rng)))
        before = self.runs[CLOSED[1]][-1].ms(50)[0]
        self.recovered.append(await recovery(Run(self.world, self.url, self.k, seed + 301), before, 30))

    def floor(self, even: bool) -> float:
        """p99/p50 of a server that takes for every batch what `onerec` took on average, at 70 % of its own peak."""
        runs = {users: found for users, found in self.batches.items() if found[0]}
        service = Service.fit(
            {users: found[1] / found[0] for users, found in runs.items()}, {u: f[0] for u, f in runs.items()}
        )
        instances, most = self.config.onerec_instances, self.config.max_batch
        return floor_ratio(HELD * service.peak(most, instances), service, most, instances, even)


def statistics(url: str) -> dict[str, tuple]:
    """By model: requests, their total seconds in the server, seconds in the queue, runs, and of each batch size runs
    and seconds."""
    client = triton.InferenceServerClient(url)
    try:
        found = client.get_inference_statistics()
    finally:
        client.close()
    return {
        ("onerec" if model.name.startswith("onerec-") else model.name): (
            model.inference_count,
            model.inference_stats.success.ns / 1e9,
            model.inference_stats.queue.ns / 1e9,
            model.execution_count,
            {b.batch_size: np.array([b.compute_infer.count, b.compute_infer.ns / 1e9]) for b in model.batch_stats},
        )
        for model in found.model_stats
    }


def parts(before: dict[str, tuple], after: dict[str, tuple]) -> dict[str, float]:
    """Mean milliseconds a request in `recommend`, and a run of it in `onerec`, between two readings."""
    count, total, queue, runs = (b - a for a, b in zip(before["recommend"][:4], after["recommend"][:4]))
    _, model_total, _, model_runs = (b - a for a, b in zip(before["onerec"][:4], after["onerec"][:4]))
    return {
        "recommend_ms": 1000 * (total - queue) / max(count, 1),
        "recommend_queue_ms": 1000 * queue / max(count, 1),
        "recommend_batch": count / max(runs, 1),
        "onerec_ms": 1000 * model_total / max(runs, 1),
        "onerec_runs": model_runs / max(runs, 1),
    }


def feast_ms(root: Path, source: str, users: list[int], reads: int = 1000) -> list[float]:
    """p50 and p99 of one user's read from the online store, in this process, in milliseconds."""
    base = Path(root).resolve() / source
    store, seconds = OnlineFeatures(base / "features", base / "feature_store"), []
    for user in (users * (1 + reads // len(users)))[:reads]:
        started = time.perf_counter()
        store.read(user)
        seconds.append(time.perf_counter() - started)
    return (1000 * np.percentile(seconds[5:], [50, 99])).tolist()


def _row(load: Load, name: str, floors: dict[str, float]) -> str:
    runs = load.runs[name]
    ms = np.array([run.ms(50, 90, 99) for run in runs])
    p50, p90, p99 = np.median(ms, 0)
    ratios = ms[:, 2] / ms[:, 0]
    floor = f"{floors[name]:.2f}" if name in floors else ""
    return (
        f"| {name} | {np.median([run.rate for run in runs]):.0f} | {p50:.1f} | {p90:.1f} | {p99:.1f} |"
        f" {np.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)}) | {floor} | {_rest(runs)} |"
    )


def _rest(runs: list[Run]) -> str:
    counts = sum((run.outcome for run in runs[1:]), runs[0].outcome.copy())
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()) if what != "ok") or "none"


def program_of(release: Path) -> str:
    """How the release's request runs on this processor."""
    if not (file := release / FOLDER / SIGNATURE).is_file():
        return "eager"
    fits = any(p.device == "cpu" and p.target == target_of("cpu") for p in Signature.load(file).packages)
    return "compiled (ONEREC_EXPORT=cpu)" if fits else "eager"


def page(load: Load, command: str, program: str, feast: list[float], args: argparse.Namespace) -> str:
    config, floors = load.config, {EVEN: load.floor(True), RANDOM: load.floor(False)}
    rows = "\n".join(_row(load, name, floors) for name in PHASES)
    own = "\n".join(
        f"| {name} | " + " | ".join(f"{np.median([p[key] for p in found]):.1f}" for key in
        ("client_ms", "recommend_queue_ms", "recommend_ms", "onerec_ms", "recommend_batch", "onerec_runs")) + " |"
        for name, found in load.own.items()
    )  # fmt: skip
    late = [run.late_ms(50, 99) for name in (EVEN, RANDOM) for run in load.runs[name]]
    late50, late99 = np.median(late, 0)
    return f"""{header("Serving under load, CPU", command)}
{config.recommend_instances} instances of `recommend`, {config.onerec_instances} of `onerec`, {config.threads} thread
each, batches of up to {config.max_batch} users, the request {program}; {load.k} items a request; medians of
{len(load.peaks)} rounds. Peak is the highest throughput of the closed loops of a round:
{", ".join(f"{peak:.0f}" for peak in load.peaks)} answers/s.
{args.note}The generator runs on the same cores; at 70 % it sent {late50:.1f} ms (p50) and {late99:.1f} ms (p99) late,
which counts.

| load | answers/s | p50 ms | p90 ms | p99 ms | p99/p50 (rounds) | by queueing alone | not answered |
|---|---|---|---|---|---|---|---|
{rows}

By queueing alone: p99/p50 of a server that takes for each batch exactly the mean that `onerec` took, at 70 % of its own
peak. Recovered {max(load.recovered):.1f} s after the overload at the latest. {load.world.faults_text()}.

Where a request's time goes (means in ms; `recommend` holds `onerec`, the rest of it is Feast, encoding and choice):

| load | at the client | queue of `recommend` | in `recommend` | of it in `onerec` | users a run | runs of `onerec` |
|---|---|---|---|---|---|---|
{own}

A Feast read of one user, alone: p50 {feast[0]:.2f} ms, p99 {feast[1]:.2f} ms.

![latency]({args.table}.svg)
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10, help="length of a phase")
    parser.add_argument("--rounds", type=int, default=3)
    for name, default in (("recommend-instances", 2), ("onerec-instances", 1), ("max-batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--release", default="", help="id of the release (default: the one in production)")
    parser.add_argument("--table", default="load", help="name of the files in --out")
    parser.add_argument("--note", default="", help="what the table should say of the machine, e.g. that it was shared")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    args.note = f"{args.note.rstrip('.')}. " if args.note else ""
    # Two of `recommend`: while the model works on one batch, the next one is read and encoded.
    config = ServingConfig(
        threads=1,
        recommend_instances=args.recommend_instances,
        onerec_instances=args.onerec_instances,
        max_batch=args.max_batch,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.root / args.source / "store" / "releases" / args.release if args.release else None
    with serving(args.root, args.source, config, args.out / "load-triton.log", folder) as (server, world):
        load = Load(world, server.grpc_url, config, args.k, args.seconds)

        async def rounds() -> None:
            await Run(world, server.grpc_url, args.k, 0).closed(4, 3)
            for number in range(args.rounds):
                await load.round(number)

        asyncio.run(rounds())
        feast = feast_ms(args.root, args.source, world.users)
    command = f"python -m benchmarks.serving.load --source {args.source} --k {args.k} --seconds {args.seconds:g}"
    text = page(load, command, program_of(server.release), feast, args)
    (args.out / f"{args.table}.md").write_text(text)
    answered = {name: [s for run in runs for s in run.seconds] for name, runs in load.runs.items()}
    percentiles_plot(answered, args.out / f"{args.table}.svg")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
