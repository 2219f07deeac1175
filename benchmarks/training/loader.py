"""The loader: what grouping a user's samples gains, what it costs to read, and how much of a run waits for data.

    python -m benchmarks.training.loader --data prepared/kuairand                 # writes loader_kuairand.md

Grouped: one row a user and day, its context encoded once for all targets. Ungrouped: one row a target, the same
targets with the context repeated. Both take the same optimiser-free step (forward and backward) in turns, three rounds.
Memory is the peak of a process that only loads, streamed with pools of 4,096 rows and as one training set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.machine import commit, hardware
from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer
from models.training.data import UserDays
from models.training.losses import PretrainLoss
from models.training.prefetch import Prefetcher
from models.training.pretrain import PretrainConfig, static_features
from models.training.row_groups import Index
from models.training.stream import Stream

ROUNDS, POOL = 3, 4096


def opened(data: Path, pool_rows: int) -> tuple[Tokenizer, list[Path], Stream]:
    tok, sets = Tokenizer.load(data / "tokenizer"), sorted((data / "training").glob("*.parquet"))
    config = onerec_laptop(
        codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static_features(sets[0])
    )
    knobs = PretrainConfig()
    stream = Stream(
        index=Index.scan(sets, tok.catalogue),
        catalogue=tok.catalogue,
        config=config,
        batch_size=knobs.batch_size,
        max_targets=knobs.max_targets,
        epochs=1,
        seed=0,
        pool_rows=pool_rows,
    )
    return tok, sets, stream


def ungrouped(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The batch's targets with a row of their own each, in batches of the same number of rows."""
    row, place = batch["target_mask"].nonzero(as_tuple=True)
    rows = len(batch["target_mask"])
    out = []
    for i in range(0, len(row), rows):
        own = {k: v[row[i : i + rows]] for k, v in batch.items() if not k.startswith("target")}
        target = batch["targets"][row[i : i + rows], place[i : i + rows]][:, None]
        out.append(own | {"targets": target, "target_mask": torch.ones_like(target, dtype=torch.bool)})
    return out


def seconds(loss: PretrainLoss, batches: list[dict[str, Tensor]], device: str) -> float:
    """Forward and backward over some batches."""
    total = torch.stack([b["target_mask"].sum() for b in batches]).sum()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begun = time.monotonic()
    for batch in batches:
        loss(batch, total)[0].backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    loss.zero_grad()
    return time.monotonic() - begun


def peak_mib(data: Path, whole: bool) -> float:
    """In a process of its own: peak memory after everything was read."""
    tok, sets, stream = opened(data, POOL)
    if whole:
        held = UserDays(pa.concat_tables([pq.read_table(p) for p in sets]), tok.catalogue, stream.config)
        assert len(held)
    else:
        for _ in stream.batches():
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(data: Path, whole: bool) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_mib, (data, whole))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder of benchmarks.training.prepare")
    p.add_argument("--device", default="cpu")
    p.add_argument("--batches", type=int, default=8, help="batches a round (8)")
    p.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = p.parse_args()
    tok, _, stream = opened(args.data, POOL)
    torch.manual_seed(0)
    model = OneRec(stream.config, torch.from_numpy(tok.sid_NL)).to(args.device).train()
    loss = PretrainLoss(model, 1.0)

    begun, rows = time.monotonic(), 0
    for batch in stream.batches():
        rows += len(batch["weight"])
    reading = rows / (time.monotonic() - begun)

    first = [b for _, b in zip(range(args.batches), stream.batches(stream.steps() - args.batches))]
    first = [{k: v.to(args.device) for k, v in b.items()} for b in first]
    single = [part for b in first for part in ungrouped(b)]
    targets = int(sum(b["target_mask"].sum() for b in first))
    seconds(loss, first[:1], args.device), seconds(loss, single[:1], args.device)  # warm
    grouped, alone = zip(
        *[(seconds(loss, first, args.device), seconds(loss, single, args.device)) for _ in range(ROUNDS)]
    )

    waits = {}
    for name, depth in (("in the loop", 0), ("4 ahead, in a thread", 4)):
        steps, begun, waited = zip(range(args.batches), zip(stream.batches())), time.monotonic(), 0.0
        if depth:
            with Prefetcher(zip(stream.batches()), args.device, depth) as loader:
                for _, (batch,) in zip(range(args.batches), loader):
                    seconds(loss, [batch], args.device)
                waited = loader.waited
        else:
            while True:
                asked = time.monotonic()
                got = next(steps, None)
                waited += time.monotonic() - asked
                if got is None:
                    break
                seconds(loss, [{k: v.to(args.device) for k, v in got[1][0].items()}], args.device)
        waits[name] = waited / (time.monotonic() - begun)

    ratio = [b / a for a, b in zip(grouped, alone)]
    lines = [
        f"# The loader on {args.data.name}",
        "",
        "| what | value |",
        "|---|---|",
        f"| targets a row (mean over {len(first)} batches) | {targets / sum(len(b['weight']) for b in first):.2f} |",
        f"| grouped, targets/s (three rounds) | {', '.join(f'{targets / s:,.0f}' for s in grouped)} |",
        f"| ungrouped, targets/s | {', '.join(f'{targets / s:,.0f}' for s in alone)} |",
        f"| gain of grouping | {np.mean(ratio):.2f} times ({min(ratio):.2f} to {max(ratio):.2f}) |",
        f"| reading, encoding and batching alone | {reading:,.0f} rows/s |",
        *[f"| share of the time that waits for data, loading {name} | {share:.1%} |" for name, share in waits.items()],
        f"| peak memory, streamed in pools of {POOL:,} rows | {measured(args.data, False):,.0f} MiB |",
        f"| peak memory, the whole set at once | {measured(args.data, True):,.0f} MiB |",
        "",
        f"- rows {stream.index.rows:,}, targets {stream.index.targets:,}, row groups {len(stream.index.groups)}",
        f"- hardware: {hardware(args.device)}; commit {commit()}; torch {torch.__version__}",
        f"- command: python -m benchmarks.training.loader --data prepared/{args.data.name} --device {args.device}",
        f"- date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        "",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"loader_{args.data.name}.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
