"""The request on a GPU end to end: gRPC client, Triton, `onerec` with its graphs, and back; latency and MFU.

    python -m benchmarks.serving.gpu_server --out benchmarks/serving --mps
    python -m benchmarks.serving.gpu_server --out /tmp/x --size tiny --items 5000 --device cpu --beam 16 --loads 1x1,0.7

A load `UxC` keeps C requests of U users each under way; `0.7` and `0.7even` are requests of one user, at random or at
even distances, at that share of the highest throughput so far, counted from the moment they were due. Weights are
random (benchmarks/serving/gpu_model.py), histories full, K as wide as the beam. Clients are processes of their own on
the same machine. MFU counts what was answered over the wall clock of the phase. Needs no release, no `recommend`, no
feature store.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from benchmarks.machine import commit, hardware
from benchmarks.serving.gpu_clients import MODEL, shares, together
from benchmarks.serving.gpu_program import stage_flops
from benchmarks.serving.queueing import Service, floor_ratio
from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue
from models.onerec.sizes import SIZES
from serving.config import ServingConfig
from serving.context import Encoder
from serving.repository import render_onerec
from serving.triton_server import TritonServer

STATIC_FEATURES, PROCESSES = 26, 8
MPS = "nvidia-cuda-mps-control"
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


def measure(url: str, config: OneRecConfig, text: str, peak: float, args: argparse.Namespace) -> dict[str, Any]:
    """One load for `args.seconds`."""
    loads = shares(text, peak, args.processes)
    before = statistics(url)
    found = together(loads, url, config, args.beam, args.seconds)
    sizes = {size: done - before.get(size, 0) for size, done in statistics(url).items()}
    runs = {size: done for size, done in sizes.items() if done[0]}
    seconds = np.array([s for part in found for s in part.seconds])
    errors = [error for part in found for error in part.errors]
    rate = loads[0].users * sum(part.answered for part in found) / args.seconds
    p50, p99 = (1e3 * np.percentile(seconds, [50, 99])).tolist() if len(seconds) else (float("nan"),) * 2
    users = sum(size * done[0] for size, done in runs.items()) / max(sum(done[0] for done in runs.values()), 1)
    return {"load": text, "rate": rate, "p50": p50, "p99": p99, "errors": errors, "batch": users, "runs": runs}


def statistics(url: str) -> dict[int, np.ndarray]:
    """By users in a run: runs, and seconds in the model."""
    with triton.InferenceServerClient(url) as connection:
        (of,) = connection.get_inference_statistics(MODEL).model_stats
        return {b.batch_size: np.array([b.compute_infer.count, b.compute_infer.ns / 1e9]) for b in of.batch_stats}


def queueing(row: dict[str, Any], rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """p99/p50 that queueing alone makes at this share of the peak, from the times of all runs so far."""
    if "x" in row["load"]:
        return ""
    runs: dict[int, np.ndarray] = {}
    for other in rows:
        for size, done in other["runs"].items():
            runs[size] = runs.get(size, 0) + done
    service = Service.fit({b: d[1] / d[0] for b, d in runs.items()}, {b: d[0] for b, d in runs.items()})
    share, even = float(row["load"].removesuffix("even")), row["load"].endswith("even")
    return f"{floor_ratio(share * service.peak(args.max_batch), service, args.max_batch, 1, even):.2f}"


@contextlib.contextmanager
def side_by_side(wanted: bool) -> Iterator[None]:
    """CUDA's MPS daemon for what is started inside: processes of one card compute at the same time, not in turns."""
    if not wanted:
        yield
        return
    with TemporaryDirectory(prefix="mps-") as folder:
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        subprocess.run([MPS, "-d"], check=True)
        try:
            yield
        finally:
            subprocess.run([MPS], input="quit\n", text=True, check=False)


def page(rows: list[dict[str, Any]], args: argparse.Namespace, gflop: float) -> str:
    on = "cuda" if args.device == "gpu" else "cpu"
    how = "one AOTInductor package" if args.package else "torch.compile" if args.compiled else "eager"
    sizes = ", ".join(map(str, sorted({*args.sizes, args.max_batch})))
    how += f", CUDA graphs of {sizes} users" if on == "cuda" else ""
    how += ", MPS" if args.mps else ""
    lines = [
        f"# The request on a {args.device.upper()}, through Triton",
        "",
        f"{hardware(on)}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}.",
        f"`python -m benchmarks.serving.gpu_server --size {args.size} --items {args.items} --beam {args.beam}`,"
        f" {args.instances} instances of `onerec` ({how}), batches of up to {args.max_batch} users,"
        f" bfloat16, beam = K = {args.beam}, {args.seconds:g} s a load.",
        f"MFU: {gflop:.0f} GFLOP a user, users answered, wall clock, {PEAK / 1e12:.0f} TFLOP/s. A load UxC keeps C"
        " requests of U users under way; 0.7 is requests of one user at 70 % of the highest rate before, at random, or"
        " even. By queueing alone: one server that takes for a run the mean that was measured for its size.",
        "",
        "| load | users/s | p50 ms | p99 ms | p99/p50 | by queueing alone | users a run | MFU | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        mfu = r["rate"] * gflop * 1e9 / PEAK
        lines.append(
            f"| {r['load']} | {r['rate']:.1f} | {r['p50']:.2f} | {r['p99']:.2f} | {r['p99'] / r['p50']:.2f} |"
            f" {queueing(r, rows, args)} | {r['batch']:.1f} | {mfu:.1%} | {len(r['errors'])} |"
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
    parser.add_argument("--mps", action="store_true", help="instances share the card at once")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1], help="graphs of these batches and the largest (1)")
    parser.add_argument("--queue-delay-us", type=int, default=1000)
    parser.add_argument("--loads", default="1x1,64x2,64x3,16x8,1x128,0.7even,0.7")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    args = parser.parse_args(argv)
    if args.mps and shutil.which(MPS) is None:
        parser.error(f"{MPS} is not in PATH; it comes with the driver, or leave --mps out")
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
            name: getattr(args, name) for name in ("size", "items", "beam", "package", "compiled", "max_batch", "sizes")
        }
        (release / "settings.json").write_text(json.dumps(described))
        begun = time.monotonic()
        server = ModelServer(
            release=release, features=release, feature_store=release, log=args.out / "gpu_server.log", config=settings
        )
        with side_by_side(args.mps), server:
            print(f"ready after {time.monotonic() - begun:.0f} s", flush=True)
            for load in args.loads.split(","):
                peak = max((row["rate"] for row in rows), default=0.0)
                rows.append(measure(server.grpc_url, config, load, peak, args))
                (args.out / "gpu_server.md").write_text(page(rows, args, gflop))
                print({name: value for name, value in rows[-1].items() if name not in ("errors", "runs")}, flush=True)
    print((args.out / "gpu_server.md").read_text())
    return int(any(row["errors"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
