"""Speed of one training step at the published context: samples/s, TFLOP/s, MFU, memory, three rounds.

    python -m benchmarks.training.step_speed --size 0.935b --profile
    python -m benchmarks.training.step_speed --size tiny --device cpu --batch 8 --steps 2

A step is forward, NTP loss, backward, clipping by norm, AdamW and expert balancing, on full histories (1 + 20 + 256 +
2000 inputs, one target of three codes), bfloat16 compute from float32 master weights. Optimisations can be turned off
one by one to see what each is worth; the losses of the first steps stand beside the speed, as a proof that they change
nothing. `--data` names a folder of `benchmarks.training.full_histories`: then batches come from pre-training's own
loader, and `data wait` is the share of the time for which the host, one step ahead of the device, waited for one.

Legend: B users.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.machine import commit, processor
from benchmarks.training.step_profile import profile
from benchmarks.training.timed_step import Trainer, synthetic_batch, wait
from models.onerec.config import OneRecConfig
from models.onerec.flops import count_parameters, forward_flops, train_flops
from models.onerec.kernels import Kernels
from models.onerec.loop_barrier import loop_barriers
from models.onerec.sizes import SIZES, lazy, session
from models.training.checkpoint import Tokenizer
from models.training.prefetch import Prefetcher
from models.training.row_groups import Index
from models.training.stream import Stream
from models.training.training_step import ATTENTION

PEAK = 989e12  # dense bfloat16 of an H100 SXM or H200, FLOP/s
STATIC_FEATURES = 26
VARIANTS: dict[str, Callable[[OneRecConfig], OneRecConfig]] = {
    "point-wise": lambda c: c,
    "session-wise": session,
    "lazy": lazy,
}
# Users a step by size: what fits beside the optimiser's state on a device of 80 GB, and of 141 GB.
BATCH = {"0.015b": (2048, 4096), "0.121b": (768, 1536), "0.935b": (640, 1280), "2.633b": (48, 128)}


def _stream(config: OneRecConfig, args: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    """Batches of pre-training's stream over a prepared folder, enough for the whole run."""
    tokenizer = Tokenizer.load(args.data / "tokenizer")
    index = Index.scan(sorted((args.data / "training").glob("*.parquet")), tokenizer.catalogue)
    needed = args.warmup + args.rounds * args.steps + 1
    return Stream(
        index=index,
        catalogue=tokenizer.catalogue,
        config=config,
        batch_size=args.batch,
        max_targets=args.targets,
        epochs=-(-needed * args.batch // index.rows) + 1,
        seed=0,
        pool_rows=args.pool_rows,
    ).batches()


def measure(config: OneRecConfig, args: argparse.Namespace) -> dict:
    """Compile, warm up, then three rounds of `--steps` steps; the first losses, and where the time goes."""
    begun = time.monotonic()
    trainer = Trainer(config, args)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loader: Prefetcher | None = None
    fixed = [synthetic_batch(config, args.batch, args.targets, args.lengths, seed) for seed in range(2)]
    if not args.host_batches:
        fixed = [{k: v.to(args.device) for k, v in b.items()} for b in fixed]
    source = itertools.cycle(fixed)
    full = True

    def batch() -> dict[str, Tensor]:
        nonlocal full
        now = {k: v.to(args.device, non_blocking=True) for k, v in next(source).items()}
        full = full and "short_mask" not in now
        return now

    first = [trainer(batch()).item()]
    compiled = time.monotonic() - begun
    print(f"first step after {compiled:.0f} s, loss {first[0]:.4f}", flush=True)
    if args.data:  # compiled on a synthetic batch of the same shapes
        steps = (({k: v for k, v in b.items() if k != "weight"},) for b in _stream(config, args))
        loader = Prefetcher(steps, args.device).__enter__()
        source = (batch for (batch,) in loader)
    first += [trainer(batch()).item() for _ in range(args.warmup - 1)]
    seconds, waited, running = [], 0.0, deque[torch.cuda.Event]()
    for _ in range(args.rounds):
        wait(args.device)
        begun = time.monotonic()
        for _ in range(args.steps):
            asked = time.monotonic()
            now = batch()
            waited += time.monotonic() - asked
            last = trainer(now)
            if args.device == "cuda":  # one step ahead at most: who then waits for data lets the device wait soon
                running.append(torch.cuda.Event())
                running[-1].record()
                if len(running) > 1:
                    running.popleft().synchronize()
        wait(args.device)
        seconds.append((time.monotonic() - begun) / args.steps)
    flops = train_flops(config, args.targets) * args.batch
    result = {
        "size": args.size,
        "variant": args.variant,
        "batch": args.batch,
        "options": args.label,
        "first_step_s": round(compiled, 1),
        "ms": [round(1e3 * s, 2) for s in seconds],
        "samples_per_s": [round(args.batch / s, 1) for s in seconds],
        "tflops": [round(flops / s / 1e12, 1) for s in seconds],
        "mfu": [round(flops / s / PEAK, 4) for s in seconds] if args.device == "cuda" else None,
        "data_wait": round(waited / (sum(seconds) * args.steps), 4),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if args.device == "cuda" else None,
        "losses": [round(x, 4) for x in first] + [round(last.item(), 4)],
    }
    if args.lengths != "masked" and not full:  # the count of full histories is not theirs
        result.pop("tflops")
        result["mfu"] = None
    print(json.dumps(result), flush=True)
    if args.profile:
        profile(trainer, batch(), args.device)
    if loader:
        loader.__exit__()
    return result


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description="Speed of one training step.")
    p.add_argument("--size", default="0.935b", choices=list(SIZES))
    p.add_argument("--variant", default="point-wise", choices=list(VARIANTS))
    p.add_argument("--batch", type=int, default=0, help="users a step (chosen by size and device memory)")
    p.add_argument("--targets", type=int, default=1, help="targets a user, three codes each (1)")
    p.add_argument("--items", type=int, default=2_000_000, help="catalogue (2,000,000)")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--precision", default="", choices=["", "bf16", "autocast", "fp32"], help="bf16; fp32 on the CPU")
    p.add_argument("--sdpa", default="cudnn", choices=["flash", "cudnn"], help="attention kernel tried first (cudnn)")
    p.add_argument("--lengths", default="full", choices=["full", "masked", "mixed"])
    p.add_argument("--no-compile", dest="compile", action="store_false")
    p.add_argument("--atomic-gradient", action="store_true", help="embedding gradients by atomics, not sorted")
    p.add_argument("--few-queries", action="store_true", help="the kernel for a few queries over long keys")
    p.add_argument("--no-event-kernels", dest="event_kernels", action="store_false", help="compiled lookups of events")
    p.add_argument("--keep-inputs", action="store_true", help="LeakyReLU keeps its input as well")
    p.add_argument("--working-copies", action="store_true", help="bfloat16 copies beside the masters, one AdamW kernel")
    p.add_argument("--lock", type=Path, help="wait for this file's lock between compiling and running")
    p.add_argument("--host-batches", action="store_true", help="synthetic batches come from the host")
    p.add_argument("--data", type=Path, help="prepared folder: the real loader (benchmarks.training.full_histories)")
    p.add_argument("--pool-rows", type=int, default=2560, help="rows that the loader reads at a time (2560)")
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--warmup", type=int, default=4)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--profile", action="store_true", help="print one step's kernels by time")
    p.add_argument("--out", type=Path, help="append the row to this Markdown file, and its JSON beside it")
    args = p.parse_args()
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    if not args.batch:
        large = args.device == "cuda" and torch.cuda.get_device_properties(0).total_memory > 100e9
        args.batch = BATCH.get(args.size, (64, 64))[large]
    flags = {"eager": not args.compile, "atomic gradient": args.atomic_gradient, "host batches": args.host_batches}
    flags |= {"few-queries kernel": args.few_queries, "compiled lookups": not args.event_kernels}
    flags |= {"LeakyReLU's input kept": args.keep_inputs, "working copies": args.working_copies}
    flags |= {f"{args.lengths} lengths": args.lengths != "full", "real loader": bool(args.data)}
    args.kernels = Kernels(
        sorted_gradient=not args.atomic_gradient,
        event_lookups=args.event_kernels,
        few_queries=args.few_queries,
        output_kept=not args.keep_inputs,
    )
    args.label = ", ".join([args.precision, args.sdpa, *(name for name, on in flags.items() if on)])
    return args


def main() -> None:
    args = parse()
    torch.set_float32_matmul_precision("high")
    small = args.size in ("tiny", "laptop")
    codes = 128 if small else 8192
    items = min(args.items, 10_000) if small else args.items
    if args.data:  # benchmarks.training.full_histories: 8192 codes a level, and --items that both are told
        codes, items = 8192, args.items
    config = VARIANTS[args.variant](SIZES[args.size](items=items, static_features=STATIC_FEATURES, codebook_size=codes))
    count = forward_flops(config, args.targets)
    print(f"forward GFLOP a sample: {sum(count.values()) / 1e9:.2f}", {k: round(v / 1e9, 2) for k, v in count.items()})
    print("parameters, M:", {k: round(v / 1e6, 1) for k, v in count_parameters(config).items()}, flush=True)
    kernels = [k for k in ATTENTION if args.sdpa == "cudnn" or k != SDPBackend.CUDNN_ATTENTION]
    while True:
        try:
            with sdpa_kernel(kernels, set_priority=True), loop_barriers():
                result = measure(config, args)
            break
        except torch.cuda.OutOfMemoryError:
            print(f"batch {args.batch} does not fit", flush=True)
            args.batch = args.batch * 3 // 4
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    if args.out:
        write(args.out, result, args.device)


def about(device: str) -> str:
    """Hardware, version, commit and time, for a table."""
    hardware = torch.cuda.get_device_name() if device == "cuda" else processor()
    return f"{hardware}, torch {torch.__version__}, commit {commit()}, {datetime.now(UTC):%Y-%m-%d %H:%M UTC}"


def write(out: Path, result: dict, device: str) -> None:
    """One more row of the table."""
    if not out.exists():
        head = [
            "size",
            "variant",
            "options",
            "batch",
            "ms a step",
            "samples/s",
            "TFLOP/s",
            "MFU",
            "data wait",
            "GiB",
            "losses",
            "on",
        ]
        out.write_text(f"# Speed of one training step\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|\n")
    cells = [result["size"], result["variant"], result["options"], result["batch"]]
    cells += [" / ".join(map(str, result.get(k) or ["–"])) for k in ("ms", "samples_per_s", "tflops", "mfu")]
    cells += [
        f"{result['data_wait']:.1%}",
        result["memory_gib"] or "–",
        " ".join(map(str, result["losses"][:4])),
        about(device),
    ]
    with out.open("a") as file:
        file.write(f"| {' | '.join(map(str, cells))} |\n")


if __name__ == "__main__":
    main()
