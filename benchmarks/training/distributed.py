"""One, two and four processes on the same steps, and weak scaling to many GPUs on paper.

    python -m benchmarks.training.distributed --data prepared/simulated           # writes distributed.md
    python -m benchmarks.training.distributed --project --step-seconds 0.343 --batch 640

The first runs pre-training under torchrun (gloo on CPU, NCCL on CUDA) with a step of four micro-batches, and compares
the losses. The second adds up what hybrid sharding sends in a step, over stated link speeds, beside a measured step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import REPOSITORY, commit, hardware

LAYOUTS = ((1, 4, 1), (2, 2, 1), (4, 1, 1), (4, 1, 2))  # processes, micro-batches each, replicas


def run(data: Path, device: str, steps: int, processes: int, accumulate: int, replicas: int) -> list[float]:
    """The losses of all steps."""
    config = {"min_steps": steps, "batch_size": 32, "accumulate": accumulate, "replicas": replicas}
    sets = sorted(str(p) for p in (data / "training").glob("*.parquet"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "models.training.pretrain", "--training-sets", *sets, "--tokenizer", str(data / "tokenizer")]
        command += ["--out", folder, "--device", device, "--config", json.dumps(config)]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        curve = json.loads((Path(folder) / "metrics.json").read_text())["loss"]
    return [point["loss"] for point in curve]


def compare(args: argparse.Namespace) -> str:
    results = {layout: run(args.data, args.device, args.steps, *layout) for layout in LAYOUTS}
    expected = np.array(results[LAYOUTS[0]])
    lines = ["| processes | micro-batches each | replicas | last loss | largest relative difference of a loss |"]
    lines.append("|---|---|---|---|---|")
    for (processes, accumulate, replicas), losses in results.items():
        off = float(np.abs(np.array(losses) / expected - 1).max())
        lines.append(f"| {processes} | {accumulate} | {replicas} | {losses[-1]:.5f} | {off:.1e} |")
    lines.append("")
    lines.append(f"- {len(expected)} steps of 4 x 32 rows, {args.data.name}, float32")
    return "\n".join(lines)


def project(args: argparse.Namespace) -> str:
    """A step's traffic a GPU.

    Weights are gathered twice in bf16 and gradients scattered in float32 inside a server, the server's shard is reduced
    between servers, and embedding rows are exchanged with everybody, forward and backward.
    """
    dense, server = args.dense * 1e9, 8
    lines = [
        "| GPUs | inside a server, ms | between servers, ms | embedding rows, ms | step, ms | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    inside = args.inside * 1e9 / 8  # bytes/s a GPU
    between = args.between * 1e9 / 8 / server  # a GPU's share of the server's link
    for gpus in (1, 8, 64, 256, 720):
        servers, within = -(-gpus // server), min(gpus, server)
        gather = (within - 1) / within * dense * (2 + 2 + 4) / inside
        reduce = 2 * (servers - 1) / servers * dense / within * 4 / between
        rows = args.batch * args.rows * args.row_bytes
        away = (gpus - within) / gpus
        exchange = 2 * rows * (away / between + (within - 1) / gpus / inside)
        step = max(args.step_seconds, gather, reduce) + exchange
        cells = [f"{1e3 * t:.1f}" for t in (gather, reduce, exchange, step)]
        lines.append(f"| {gpus} | {' | '.join(cells)} | {args.step_seconds / step:.0%} |")
    lines += [
        "",
        f"On paper: {args.step_seconds * 1e3:.0f} ms of computation a step of {args.batch} rows a GPU (measured on "
        f"one), {args.dense} billion dense parameters, {args.rows} distinct embedding rows a sample of "
        f"{args.row_bytes} bytes, {args.inside:g} Gbit/s a GPU inside a server of 8 and {args.between:g} Gbit/s a "
        "server between them (the report's "
        "stated links). Dense traffic overlaps with computation, the exchange of embedding rows does not.",
    ]
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, help="folder of benchmarks.training.prepare")
    p.add_argument("--device", default="cpu")
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--project", action="store_true", help="only the projection, printed")
    p.add_argument("--step-seconds", type=float, default=0.343, help="measured step on one GPU (0.935B)")
    p.add_argument("--batch", type=int, default=640)
    p.add_argument("--dense", type=float, default=0.96, help="dense parameters, billions")
    p.add_argument("--rows", type=int, default=600, help="distinct table rows a sample asks for")
    p.add_argument("--row-bytes", type=int, default=1024, help="512 numbers in bf16")
    p.add_argument("--inside", type=float, default=400.0, help="Gbit/s a GPU inside a server")
    p.add_argument("--between", type=float, default=400.0, help="Gbit/s a server between servers")
    p.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = p.parse_args()
    projection = project(args)
    if args.project:
        print(projection)
        return
    if args.data is None:
        p.error("--data is missing: a folder of benchmarks.training.prepare")
    page = ["# Several processes", "", compare(args), f"- hardware: {hardware(args.device)}; commit {commit()}"]
    page += [f"- command: python -m benchmarks.training.distributed --data prepared/{args.data.name}"]
    page += [f"- torch {torch.__version__}; {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}", ""]
    page += ["# Weak scaling, projected", "", projection, ""]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "distributed.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
