"""Rollout throughput: users a second at several group sizes by beam search, and rollouts' share of an alignment step.

    python -m benchmarks.alignment.rollout_speed --prepared prepared/kuairand --device cuda --steps 20 --seeds 1 2 3

Timed on one process at a time (`--jobs 1`), the first calls not counted.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import Evaluation, aligned
from models.training.checkpoint import load_model
from models.training.rollout import RolloutConfig, RolloutWorker

WIDE = ", wide requests"  # four times the users of a request, generation alone
VARIANTS = ("G 512", "G 512" + WIDE, "G 512, process", "G 32", "G 128", "G 32, process", "G 128, process")


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    size = int(variant.split(",")[0].removeprefix("G "))
    result: dict[str, Any] = {}
    if WIDE not in variant:
        times: list[tuple[float, float]] = []
        changes = {"rollout.group_size": size, "users_per_step": args.batch, "rollout_process": "process" in variant}
        changes |= {"probe_users": args.batch}
        aligned(args, seed, changes, lambda _, p: times.append((p["rollout_seconds"], p["seconds"])))
        waited, whole = np.array(times[len(times) // 4 :]).T
        result["step_seconds"], result["rollout_share"] = float(whole.mean()), float(waited.sum() / whole.sum())
        if "process" in variant:
            return result
    batch = args.batch * (4 if WIDE in variant else 1)
    evaluation = Evaluation(args)
    model = load_model(args.prepared / "model", evaluation.tok).to(args.device)
    worker = RolloutWorker(model, evaluation.tok, RolloutConfig(group_size=size), seed)
    rows = np.resize(evaluation.rows, batch)
    for timed in (False, False, True):
        _wait(args.device)
        begun = time.monotonic()
        for _ in range(args.rounds if timed else 1):
            worker.generate(evaluation.data.context(rows))
        _wait(args.device)
    seconds = time.monotonic() - begun
    result |= {
        "users_per_s": args.rounds * batch / seconds,
        "items_per_s": args.rounds * batch * size / seconds,
    }
    if args.device.startswith("cuda"):
        result["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=64, help="users a request (64)")
    parser.add_argument("--rounds", type=int, default=10, help="timed requests (10)")
    main(
        Benchmark(
            module="benchmarks.alignment.rollout_speed",
            title="Rollout throughput",
            variants=VARIANTS,
            one=one,
            columns=[
                Column(key="users_per_s", title="users/s", digits=1),
                Column(key="items_per_s", title="items/s", digits=0),
                Column(key="step_seconds", title="seconds a step", digits=3),
                Column(key="rollout_share", title="share of the step that waits for rollouts", digits=3),
                Column(key="gpu_gib", title="GPU GiB", digits=2),
            ],
            notes="A request is 64 users unless --batch says otherwise, four times as many if wide; a step has "
            "as many users. `process` is the worker in a process of its own, one step ahead of the trainer.",
        ),
        parser,
    )
