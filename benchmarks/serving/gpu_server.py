"""The request on a GPU end to end: gRPC client, Triton, `onerec` with its graphs, and back; latency and MFU.

    python -m benchmarks.serving.gpu_server --out benchmarks/serving --package program.pt2
    python -m benchmarks.serving.gpu_server --out /tmp/x --size tiny --items 5000 --device cpu --beam 16 --loads 1x1,2x4

A load `UxC` keeps C requests of U users each under way. Weights are random (benchmarks/serving/gpu_model.py), histories
full, K as wide as the beam. Clients are processes of their own on the same machine. MFU counts what was answered over
the wall clock of the phase. Needs no release, no `recommend`, no feature store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from benchmarks.machine import commit, hardware
from benchmarks.serving.gpu_program import requests, stage_flops
from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue
from models.onerec.program import INPUTS
from models.onerec.sizes import SIZES
from serving.config import ServingConfig
from serving.context import Encoder
from serving.repository import render_onerec
from serving.triton_server import TritonServer

LEAD_S = 1.0  # of a phase, not counted
MODEL, STATIC_FEATURES, PROCESSES = "onerec-random", 26, 8
PEAK = 989e12


class ModelServer(TritonServer):
    """A server of the one model, whose `release` is a folder with its settings."""

    ready_seconds = 400.0

    def _models(self) -> list[str]:
        config = OneRecConfig.load(self.release / "model" / "config.json")
        shapes = Encoder(config, Catalogue(np.zeros(0, np.int64))).shapes
        name = render_onerec(self._repository, MODEL, shapes, self.release, self.config)
        shutil.copyfile(Path(__file__).with_name("gpu_model.py"), self._repository / name / "1" / "model.py")
        return [name]


def inputs_of(config: OneRecConfig, users: int, beam: int, seed: int) -> list[triton.InferInput]:
    """Full histories of random events, as benchmarks/serving/gpu_program.py makes them."""
    tensors = dict(zip(INPUTS, (t.numpy() for t in requests(config, users, beam, seed))))
    tensors["params"] = np.tile(np.array([beam, beam, 0], np.int32), (users, 1))
    del tensors["beam"]
    made = []
    for name, array in tensors.items():
        made.append(triton.InferInput(name, list(array.shape), "INT32"))
        made[-1].set_data_from_numpy(np.ascontiguousarray(array))
    return made


def client(
    url: str, config: OneRecConfig, users: int, loops: int, beam: int, length: float, together: Any, out: Any
) -> None:
    """One process: `loops` requests under way. Latencies of `length` seconds after the first, and what went wrong."""

    async def run() -> tuple[list[float], list[str]]:
        inputs = [inputs_of(config, users, beam, seed) for seed in range(4)]
        seconds: list[float] = []
        errors: list[str] = []
        together.wait()  # importing takes the processes unequal times
        window = time.time() + LEAD_S, time.time() + LEAD_S + length

        async def loop(connection: triton_aio.InferenceServerClient, at: int) -> None:
            while (begun := time.time()) < window[1]:
                at += 1
                try:
                    found = await connection.infer(MODEL, inputs[at % len(inputs)], client_timeout=60)
                    assert found.as_numpy("item_ids").shape == (users, beam)
                    if window[0] <= begun and (now := time.time()) <= window[1]:
                        seconds.append(now - begun)
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}"[:200])

        async with triton_aio.InferenceServerClient(url) as connection:
            await asyncio.gather(*(loop(connection, i) for i in range(loops)))
        return seconds, errors

    out.put(asyncio.run(run()))


def measure(url: str, config: OneRecConfig, users: int, under_way: int, args: argparse.Namespace) -> dict[str, Any]:
    """One load for `args.seconds`."""
    processes = min(PROCESSES, under_way, args.processes)
    shares = [under_way // processes + (i < under_way % processes) for i in range(processes)]
    context = multiprocessing.get_context("spawn")
    answers, together = context.Queue(), context.Barrier(processes)
    work = [
        context.Process(target=client, args=(url, config, users, n, args.beam, args.seconds, together, answers))
        for n in shares
    ]
    for process in work:
        process.start()
    found = [answers.get(timeout=args.seconds + 120) for _ in work]
    for process in work:
        process.join()
    seconds = np.array([s for part, _ in found for s in part])
    errors = [error for _, part in found for error in part]
    rate = users * len(seconds) / args.seconds
    p50, p99 = (1e3 * np.percentile(seconds, [50, 99])).tolist() if len(seconds) else (float("nan"),) * 2
    return {"users": users, "under_way": under_way, "rate": rate, "p50": p50, "p99": p99, "errors": errors}


def statistics(url: str) -> tuple[float, ...]:
    """Users answered, runs, seconds in the queue, seconds in the model."""
    with triton.InferenceServerClient(url) as connection:
        (of,) = connection.get_inference_statistics(MODEL).model_stats
        stats = of.inference_stats
        return of.inference_count, of.execution_count, stats.queue.ns / 1e9, stats.compute_infer.ns / 1e9


def page(rows: list[dict[str, Any]], args: argparse.Namespace, gflop: float) -> str:
    on = "cuda" if args.device == "gpu" else "cpu"
    how = "one AOTInductor package" if args.package else "torch.compile" if args.compiled else "eager"
    lines = [
        "# The request on a GPU, through Triton",
        "",
        f"{hardware(on)}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}.",
        f"`python -m benchmarks.serving.gpu_server --size {args.size} --items {args.items} --beam {args.beam}`,"
        f" {args.instances} instances of `onerec` ({how}, CUDA graphs), batches of up to {args.max_batch} users,"
        f" bfloat16, beam = K = {args.beam}, {args.seconds:g} s a load.",
        f"MFU: {gflop:.0f} GFLOP a user, users answered, wall clock, {PEAK / 1e12:.0f} TFLOP/s.",
        "",
        "| users a request | requests under way | users/s | p50 ms | p99 ms | users a run | MFU | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        mfu = r["rate"] * gflop * 1e9 / PEAK
        lines.append(
            f"| {r['users']} | {r['under_way']} | {r['rate']:.1f} | {r['p50']:.2f} | {r['p99']:.2f} |"
            f" {r['batch']:.1f} | {mfu:.1%} | {len(r['errors'])} |"
        )
    lines += sorted({f"\n{error}" for r in rows for error in r["errors"][:2]})
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="0.935b", choices=list(SIZES))
    parser.add_argument("--items", type=int, default=4_000_000)
    parser.add_argument("--beam", type=int, default=512)
    parser.add_argument("--device", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--package", default="", help="AOTInductor package of the same program (gpu_program --package)")
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--queue-delay-us", type=int, default=1000)
    parser.add_argument("--loads", default="1x1,64x2,64x3,16x8,1x128")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    config = SIZES[args.size](items=args.items, static_features=STATIC_FEATURES, codebook_size=8192)
    settings = ServingConfig(
        device=args.device,
        onerec_instances=args.instances,
        threads=2,
        max_batch=args.max_batch,
        queue_delay_us=args.queue_delay_us,
        max_queue=4096,
        queue_timeout_ms=30_000,
    )
    gflop, rows = sum(stage_flops(config, args.beam, 1).values()) / 1e9, []
    with TemporaryDirectory(prefix="onerec-random-") as folder:
        release = Path(folder)
        (release / "model").mkdir()
        config.save(release / "model" / "config.json")
        described = {
            name: getattr(args, name) for name in ("size", "items", "beam", "package", "compiled", "max_batch")
        }
        (release / "settings.json").write_text(json.dumps(described))
        begun = time.monotonic()
        server = ModelServer(
            release=release, features=release, feature_store=release, log=args.out / "gpu_server.log", config=settings
        )
        with server:
            print(f"ready after {time.monotonic() - begun:.0f} s", flush=True)
            for load in args.loads.split(","):
                users, under_way = map(int, load.split("x"))
                before = statistics(server.grpc_url)
                row = measure(server.grpc_url, config, users, under_way, args)
                done = [b - a for a, b in zip(before, statistics(server.grpc_url))]
                rows.append(row | {"batch": done[0] / max(done[1], 1)})
                (args.out / "gpu_server.md").write_text(page(rows, args, gflop))
                print(page(rows[-1:], args, gflop).splitlines()[-1], flush=True)
    print((args.out / "gpu_server.md").read_text())
    return int(any(row["errors"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
