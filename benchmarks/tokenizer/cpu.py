"""K-means on a CPU: time and final inertia beside faiss-cpu and scikit-learn, for the same number of iterations.

    python -m pip install -r locks/bench.in
    python -m benchmarks.tokenizer.cpu --beauty DATA/amazon14/beauty --out benchmarks/tokenizer/cpu.md

All three run in one process, in turns, `--rounds` times each: the least time counts. Time is the process's CPU time,
which the load of the machine moves less than the clock. The work is what a tokenizer needs: centroids, and the code of
every vector. scikit-learn starts by greedy k-means++, faiss from random vectors, ours by greedy k-means++ on a sample;
starts are in the time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.tokenizer.data import beauty_vectors
from benchmarks.tokenizer.page import heading
from models.tokenizer.kmeans import kmeans
from models.tokenizer.vectors import InMemory


def synthetic(n: int, d: int, topics: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(topics, d)).astype(np.float32)
    return centre[rng.integers(topics, size=n)] + 0.7 * rng.normal(size=(n, d)).astype(np.float32)


def ours(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    return kmeans(InMemory(torch.from_numpy(x)), k, seed, iterations=iterations)[0].numpy()


def faiss_kmeans(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    most = len(x) // k + 1  # all vectors, as the others; faiss samples 256 a centroid otherwise
    job = faiss.Kmeans(
        x.shape[1], k, niter=iterations, seed=seed, max_points_per_centroid=most, min_points_per_centroid=1
    )
    job.train(x)
    job.index.search(x, 1)
    return job.centroids


def scikit(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    job = KMeans(k, init="k-means++", n_init=1, max_iter=iterations, tol=0, random_state=seed, algorithm="lloyd")
    return job.fit(x).cluster_centers_


def inertia(x: np.ndarray, centroid: np.ndarray) -> float:
    """Sum of squared distances, in float64, by nobody's assignment."""
    c, total = centroid.astype(np.float64), 0.0
    for part in np.array_split(x, max(1, len(x) * len(c) // 2**24)):
        part = part.astype(np.float64)
        d = np.square(part).sum(1)[:, None] + np.square(c).sum(1) - 2 * part @ c.T
        total += float(d.min(1).sum())
    return total


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--beauty", type=Path, required=True, help="folder of Amazon 2014 Beauty")
    p.add_argument("--cache", type=Path, default=Path("build"), help="folder that keeps the embeddings")
    p.add_argument("--out", type=Path)
    p.add_argument("--rows", type=int, default=1_000_000, help="synthetic vectors")
    p.add_argument("--iterations", type=int, default=20)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--scikit-most", type=int, default=10**7, help="rows up to which the slowest, scikit-learn, runs")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    ways: dict[str, Callable[..., np.ndarray]] = {"ours": ours, "faiss-cpu": faiss_kmeans, "scikit-learn": scikit}
    text = (
        heading(
            "K-means on a CPU",
            f"python -m benchmarks.tokenizer.cpu --beauty DATA/amazon14/beauty --rows {args.rows}"
            f" --iterations {args.iterations} --rounds {args.rounds} --out benchmarks/tokenizer/cpu.md",
        )
        + f"{args.threads} thread(s) each; load average at the start {os.getloadavg()[0]:.1f}; "
        f"least of {args.rounds} rounds.\n\n"
    )
    text += "| vectors | codes | way | CPU seconds | time, ours = 1 | inertia, least = 1 |\n|---|---|---|---|---|---|\n"
    for name, x, k in (
        ("Beauty titles, sentence embeddings", beauty_vectors(args.beauty, args.cache), 256),
        ("synthetic", synthetic(args.rows, 64), 256),
    ):
        if len(x) > args.scikit_most:
            ways.pop("scikit-learn", None)
        took: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(args.rounds):
            for way, run in ways.items():
                begun = time.process_time()
                centroid = run(x, k, args.iterations, seed)
                took[way].append(time.process_time() - begun)
                found[way].append(inertia(x, centroid))
                print(name, way, seed, f"{took[way][-1]:.2f} s", f"{found[way][-1]:.6g}", flush=True)
        best = min(np.mean(v) for v in found.values())
        for way in ways:
            text += (
                f"| {name}, {len(x):,} x {x.shape[1]} | {k} | {way} | {min(took[way]):.2f}"
                f" | {min(took[way]) / min(took['ours']):.2f} | {np.mean(found[way]) / best:.4f} |\n"
            )
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
