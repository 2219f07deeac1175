"""How long the lifelong pathway of one user takes: 100,000 events of 64 to 512 dimensions, on one core or on a GPU.

    OMP_NUM_THREADS=1 python -m benchmarks.features.lifelong --out benchmarks/features/lifelong.md
    python -m benchmarks.features.lifelong --device cuda --users 16 --out benchmarks/features/lifelong_cuda.md

Needs torch and numpy only; with scikit-learn installed, its KMeans does the same splits (the same counts a group, the
same M, one start of k-means++, at most 300 iterations and, to be fair, also at most our 4) beside it in the same run.
The events are drawn from a catalogue of 100,000 items around 300 themes. "spread" is the mean squared distance of the
events to the centre of their group, in percent of that to the centre of all: lower is better.
The catalogue lies on the device before the clock starts, as it does in a day's run; the events' item numbers do not.
On a GPU the first user's groups are compared with those of the CPU: "equal" says that no bit differs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import commit, processor
from feature_repo.lifelong import MAX_EVENTS, compress, group_limit

ITEMS, THEMES = 100_000, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--events", type=int, default=MAX_EVENTS)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--users", type=int, default=1, help="users in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown table")
    parser.add_argument("--profile", type=Path, help="text file: where the time of one more call goes, at each width")
    args = parser.parse_args()
    lines = [*heading(args), "| dimensions | program | s a user | groups | largest | spread % |"]
    lines.append("|---|---|---|---|---|---|")
    for dims in args.dims:
        for line in measured(args, dims):
            lines.append(line)
            print(line, flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def measured(args: argparse.Namespace, dims: int) -> Iterator[str]:
    """The lines of one width."""
    vector_ID, user_N, item_N = histories(dims, args.users, args.events)
    on_device = torch.as_tensor(vector_ID, device=args.device)
    seconds, group_N = fastest(args.rounds, lambda: compress(user_N, item_N, on_device, device=args.device)[0])
    mine, name = item_N[: args.events], "ours"
    if args.device == "cuda":
        alone_N, _ = compress(user_N[: args.events], mine, vector_ID)
        name = f"ours ({'equal to' if np.array_equal(alone_N, group_N[: args.events]) else '**differs from**'} CPU)"
    yield row(dims, name, seconds / args.users, vector_ID, mine, group_N[: args.events])
    if args.profile:
        with args.profile.open("a") as file:
            file.write(f"{dims} dimensions, {args.users} users\n")
            file.write(profiled(lambda: compress(user_N, item_N, on_device, device=args.device), args.device))
    for iterations in (4, 300):
        if args.device == "cpu" and (split := sklearn_split(iterations)):
            seconds, group_N = fastest(1, partial(by_sklearn, vector_ID[mine], split))
            yield row(dims, f"scikit-learn, {iterations} iterations", seconds, vector_ID, mine, group_N)


def histories(dims: int, users: int, events: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A catalogue of unit vectors around themes, and each user's events: half of them of five themes they like."""
    rng = np.random.default_rng(7)
    theme_I = rng.integers(0, THEMES, ITEMS)
    vector_ID = rng.normal(size=(THEMES, dims))[theme_I] + 0.7 * rng.normal(size=(ITEMS, dims))
    vector_ID = (vector_ID / np.linalg.norm(vector_ID, axis=1, keepdims=True)).astype(np.float32)
    parts = []
    for _ in range(users):
        liked = np.flatnonzero(np.isin(theme_I, rng.integers(0, THEMES, 5)))
        parts.append(np.where(rng.random(events) < 0.5, rng.choice(liked, events), rng.integers(0, ITEMS, events)))
    return vector_ID, np.repeat(np.arange(users), events), np.concatenate(parts)


def sklearn_split(iterations: int) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """One K-means by scikit-learn: vectors and count to clusters; None where it is not installed."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        return None
    return lambda x_ND, k: KMeans(k, n_init=1, max_iter=iterations, random_state=0).fit(x_ND).labels_


def by_sklearn(x_ND: np.ndarray, split: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """The hierarchy, one group at a time. One user."""
    limit, group_N, todo, found = int(group_limit(len(x_ND))), np.zeros(len(x_ND), np.int64), [np.arange(len(x_ND))], 0
    while todo:
        rows = todo.pop()
        if len(rows) <= limit:
            group_N[rows] = found
            found += 1
            continue
        k = max(2, int(np.cbrt(len(rows)) + 1e-9))
        part = split(x_ND[rows], k)
        if part.min() == part.max():
            part = np.arange(len(rows)) * k // len(rows)
        todo += [rows[part == j] for j in np.unique(part)]
    return group_N


def fastest(rounds: int, call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds of the fastest of some rounds (of several the first does not count), and the result, which is numpy."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds), found


def profiled(call: Callable[[], object], device: str) -> str:
    """What one call does, by operation: those that take the device longest, then those that take the host longest."""
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]) as profiler:
        call()
    averages = profiler.key_averages()
    order = [*(["self_cuda_time_total"] if device == "cuda" else []), "self_cpu_time_total"]
    tables = [averages.table(sort_by=by, row_limit=25, max_name_column_width=90) for by in order]
    return f"{time.perf_counter() - start:.3f} s under the profiler\n" + "\n".join(tables) + "\n"


def row(dims: int, name: str, seconds: float, vector_ID: np.ndarray, item_N: np.ndarray, group_N: np.ndarray) -> str:
    """A line of the table about one user's groups."""
    x_ND, size_G = vector_ID[item_N].astype(np.float64), np.bincount(group_N)
    order = np.argsort(group_N, kind="stable")
    centre_GD = np.add.reduceat(x_ND[order], np.cumsum(size_G) - size_G) / size_G[:, None]
    within = np.square(x_ND - centre_GD[group_N]).sum()
    spread = 100 * within / np.square(x_ND - x_ND.mean(0)).sum()
    return f"| {dims} | {name} | {seconds:.4f} | {len(size_G)} | {size_G.max()} | {spread:.1f} |"


def heading(args: argparse.Namespace) -> list[str]:
    """What ran where."""
    core = f"{processor()}, {torch.get_num_threads()} thread"
    device = torch.cuda.get_device_name() if args.device == "cuda" else core
    command = f"python -m benchmarks.features.lifelong --device {args.device} --users {args.users}"
    return [
        f"# Lifelong pathway: {args.events:,} events a user, {args.users} users a batch",
        "",
        f"{device}; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}; commit {commit()};",
        f"{datetime.date.today()}; `{command} --rounds {args.rounds}`; the fastest round but the first.",
        "",
    ]


if __name__ == "__main__":
    main()
