"""Malformed and hostile requests against a running server: each must get an error or an answer, and the server lives.

    python -m benchmarks.serving.fuzz --root var --source simulated --requests 100000

Tensors of a wrong shape, type or name, missing ones, several users, negative and huge numbers, NaN bytes, empty and
overlong lists, batches over the maximum, wrong beams, codes outside their tables (straight at `onerec-*`), unknown
models. Memory of the server's processes and /dev/shm are read after a first tenth of the requests and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from benchmarks.serving.world import header, serving
from serving.client import RecommendClient
from serving.config import MODEL_PREFIX, ServingConfig
from serving.triton_server import TritonServer

ODD = (0, 1, -1, 7, 513, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
TYPES = {np.int64: "INT64", np.int32: "INT32", np.float32: "FP32", np.uint8: "UINT8", np.float64: "FP64"}
GOOD = {"user_id": np.array([[1]]), "k": np.array([[5]], np.int32)}
OPTIONAL = {"exclude": np.int64, "exclude_authors": np.int64, "max_age_s": np.int64, "now_s": np.int64}
OPTIONAL |= {"beam": np.int32, "rerank": np.int32, "live": np.int64}
SAFE = ("INVALID_ARGUMENT", "UNAVAILABLE", "NOT_FOUND", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "client")


def odd_array(rng: np.random.Generator, dtype: type) -> np.ndarray:
    """Some shape, some of the odd numbers; NaN and infinities where the type has them."""
    shape = tuple(rng.choice([1, 1, 1, 2, 7, 17, 0], size=rng.integers(1, 4)))
    if np.issubdtype(dtype, np.floating):
        return rng.choice(np.array([np.nan, np.inf, -np.inf, 0, 1e30], dtype), shape)
    bounds = np.iinfo(dtype)
    return rng.choice(np.array([v for v in ODD if bounds.min <= v <= bounds.max], dtype), shape)


def mutated(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> tuple[str, dict[str, np.ndarray]]:
    """A model and its tensors, with one to three things wrong (sometimes by chance nothing)."""
    if rng.random() < 0.25:
        batch = int(rng.choice([1, 2, 16, 17]))
        tensors = {n: rng.integers(-3, 300, (batch, *shape)).astype(np.int32) for n, shape in shapes.items()}
        tensors["params"] = rng.choice(np.array([0, 1, 5, 600, -1], np.int32), (batch, 3))
        if rng.random() < 0.3:
            tensors[str(rng.choice(list(tensors)))] = odd_array(rng, rng.choice(list(TYPES)))
        return "onerec", tensors
    tensors = dict(GOOD)
    for _ in range(rng.integers(1, 4)):
        what = rng.random()
        if what < 0.1:
            tensors.pop(str(rng.choice(list(GOOD))), None)
        elif what < 0.2:
            tensors[f"x{rng.integers(9)}"] = odd_array(rng, np.int64)
        elif what < 0.5:
            name = str(rng.choice(list(GOOD)))
            tensors[name] = odd_array(rng, rng.choice(list(TYPES)))
        elif what < 0.6:
            tensors["exclude"] = rng.integers(-(2**62), 2**62, (1, int(rng.choice([0, 3, 10_001]))))
        elif what < 0.7:
            tensors["live"] = rng.choice(np.array(ODD), (1, int(rng.choice([0, 1, 9, 1001])), 7))
        else:
            name = str(rng.choice(list(OPTIONAL)))
            scalar = rng.choice(np.array([v for v in ODD if abs(v) < 2**31], OPTIONAL[name]), (1, 1))
            tensors[name] = scalar if rng.random() < 0.7 else odd_array(rng, rng.choice(list(TYPES)))
    return ("recommend" if rng.random() < 0.98 else "nobody"), tensors


def inputs_of(tensors: dict[str, np.ndarray]) -> list[triton.InferInput]:
    made = []
    for name, array in tensors.items():
        made.append(triton.InferInput(name, list(array.shape), TYPES[array.dtype.type]))
        made[-1].set_data_from_numpy(array)
    return made


async def fuzz(url: str, onerec: str, shapes: dict, requests: int, seed: int, clients: int = 32) -> Counter:
    """Send them; the count of outcomes by gRPC status ("ok" for an answer)."""
    rng, outcome = np.random.default_rng(seed), Counter()
    left = iter(range(requests))

    async def loop(client: triton_aio.InferenceServerClient) -> None:
        for _ in left:
            model, tensors = mutated(rng, shapes)
            try:
                await client.infer(onerec if model == "onerec" else model, inputs_of(tensors), client_timeout=30)
                outcome["ok"] += 1
            except triton.InferenceServerException as error:
                status = str(error.status() or "client").removeprefix("StatusCode.")
                outcome[status] += 1
                if status not in SAFE and outcome[status] <= 3:
                    print(f"{status}: {error.message()}; {model} {tensors}", file=sys.stderr)

    async with triton_aio.InferenceServerClient(url) as client:
        await asyncio.gather(*(loop(client) for _ in range(clients)))
    return outcome


def memory(server: TritonServer) -> tuple[float, float]:
    """MiB resident of the server with its stubs (shared pages counted once a process), and of its /dev/shm regions."""
    assert server.process is not None
    tree = psutil.Process(server.process.pid)
    resident = sum(p.memory_full_info().uss for p in (tree, *tree.children(recursive=True))) / 2**20
    shm = sum(f.stat().st_blocks * 512 for f in Path("/dev/shm").glob(f"{server._shared_memory}-*")) / 2**20
    return resident, shm


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("var"))
    parser.add_argument("--source", default="simulated")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with serving(args.root, args.source, ServingConfig(threads=1), args.out / "fuzz-triton.log") as (server, world):
        release = next(iter(world.codes))
        shapes = shapes_of(server.grpc_url, MODEL_PREFIX + release)
        started = time.perf_counter()
        first = asyncio.run(fuzz(server.grpc_url, MODEL_PREFIX + release, shapes, args.requests // 10, args.seed))
        early = memory(server)
        rest = args.requests - args.requests // 10
        then = asyncio.run(fuzz(server.grpc_url, MODEL_PREFIX + release, shapes, rest, args.seed + 1))
        late, seconds = memory(server), time.perf_counter() - started
        with RecommendClient(server.grpc_url) as client:
            alive = len(client.recommend(world.users[0], 10, now_s=world.now_s).item_ids)
    outcome = first + then
    rows = "\n".join(f"| {status} | {count:,} |" for status, count in outcome.most_common())
    unsafe = sum(count for status, count in outcome.items() if status not in (*SAFE, "ok"))
    command = f"python -m benchmarks.serving.fuzz --source {args.source} --requests {args.requests}"
    table = f"""{header("Fuzzing the server", command)}
{outcome.total():,} requests in {seconds:.0f} s; internal errors: {unsafe}.
Afterwards the server answers with {alive} items.

| outcome | requests |
|---|---|
{rows}

| | after a tenth | at the end |
|---|---|---|
| memory of the processes, MiB | {early[0]:.0f} | {late[0]:.0f} |
| /dev/shm, MiB | {early[1]:.1f} | {late[1]:.1f} |
"""
    (args.out / "fuzz.md").write_text(table)
    print(table)
    return int(unsafe > 0)


def shapes_of(url: str, model: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's inputs without the batch, as the server tells them to anybody."""
    client = triton.InferenceServerClient(url)
    try:
        inputs = client.get_model_metadata(model).inputs
    finally:
        client.close()
    return {i.name: tuple(i.shape[1:]) for i in inputs if i.name != "params"}


if __name__ == "__main__":
    sys.exit(main())
