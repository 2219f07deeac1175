"""The three models side by side on the same data: point-wise (TR), session-wise (V1), lazy decoder-only (V2).

    python -m benchmarks.training.variants --data prepared/kuairand --steps 240 --seeds 1 2 3
    python -m benchmarks.training.variants --data prepared/kuairand --device cuda --seeds 1 2 3

`--data` holds tokenizer/, and training and evaluation rows as training.parquet and evaluation.parquet (as
benchmarks.alignment.prepare writes them) or as folders of Parquet files. Each variant is trained on the same batches
with the NTP loss alone, none has the item-level head, and is measured on the day after: NTP loss a level, recall of a
beam, FLOPs from shapes, time of a training step and latency of one user's beam.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.training.step_speed import VARIANTS, about
from benchmarks.training.timed_step import optimizer_of, wait
from models.onerec.beam_search import beam_search, beam_search_lists
from models.onerec.config import OneRecConfig, onerec_laptop
from models.onerec.flops import count_parameters, forward_flops, train_flops
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.training.checkpoint import Tokenizer
from models.training.data import PATHWAYS, TrainingSet
from models.training.losses import ntp_loss
from models.training.pretrain import static_features

TARGETS = 8
RATES = {"lr_sparse": 3e-3, "lr_dense": 1.5e-3}  # of pre-training's bootstrap
LIST = 5  # items of a list
KEEP = {"point-wise": "one item", "session-wise": f"list of {LIST}", "lazy": "one item"}


def parquet(data: Path, name: str) -> list[Path]:
    """The Parquet files of training or evaluation rows. FileNotFoundError names what is missing."""
    found = (
        [data / f"{name}.parquet"] if (data / f"{name}.parquet").exists() else sorted((data / name).rglob("*.parquet"))
    )
    if not found:
        raise FileNotFoundError(f"{data} holds neither {name}.parquet nor {name}/*.parquet; prepare it first")
    return found


def to(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in batch.items()}


class Run:
    """One variant trained from one seed."""

    def __init__(self, config: OneRecConfig, tok: Tokenizer, seed: int, args: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        self.device, self.seed, self.tok = args.device, seed, tok
        self.model = OneRec(config, torch.from_numpy(tok.sid_NL)).to(args.device)
        self.optimizer = optimizer_of(self.model, args.device == "cuda", **RATES)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        z, mask = self.model.encode(batch)
        return ntp_loss(self.model, batch["targets"], batch["target_mask"].float(), z, mask)

    def train(self, data: TrainingSet, steps: int, size: int) -> float:
        """Train on the same batches whatever the variant; seconds of processor time a step (of the clock on CUDA)."""
        self.model.train()
        rows = np.flatnonzero(data.targets.lengths > 0)
        batches = [b for epoch in range(-(-steps * size // len(rows))) for b in data.batches(rows, size, epoch)][:steps]
        clock = time.monotonic if self.device == "cuda" else time.process_time
        wait(self.device)
        begun = clock()
        for step, chosen in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / len(batches))
            loss, _ = self.loss(to(data.batch(chosen, TARGETS), self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            for module in self.model.modules():
                if isinstance(module, MoE):
                    module.balance()
        wait(self.device)
        return (clock() - begun) / len(batches)

    @torch.no_grad()
    def evaluate(self, data: TrainingSet, users: int, width: int) -> dict[str, float]:
        """NTP loss over targets and levels, and the share of a user's targets in the beam's first `width` items."""
        self.model.eval()
        rows = np.random.default_rng(0).permutation(np.flatnonzero(data.targets.lengths > 0))[:users]
        trie = self.tok.trie.to(self.device)
        total, count, recall = torch.zeros(3), 0, []
        for part in np.array_split(rows, -(-len(rows) // 64)):
            batch = to(data.batch(part, TARGETS), self.device)
            n = int(batch["target_mask"].sum())
            total, count = total + self.loss(batch)[1].cpu() * n, count + n
            codes, _ = beam_search(self.model, *self.model.encode(batch), width, trie)
            item = trie.lookup(codes).cpu().numpy()
            recall += [np.isin(data.targets.row(row), item[i]).mean() for i, row in enumerate(part)]
        levels = (total / count).tolist()
        return {"loss": sum(levels), **{f"c{i}": v for i, v in enumerate(levels)}, "recall": float(np.mean(recall))}

    @torch.no_grad()
    def latency(self, data: TrainingSet, width: int, times: int = 20) -> float:
        """Median milliseconds to answer one user: context and beam (of lists, session-wise)."""
        self.model.eval()
        longest = np.argsort(-sum(data.pathway[p].lengths for p in PATHWAYS), kind="stable")[:times]
        trie, m, taken = self.tok.trie.to(self.device), self.model.config.session_items, []
        for row in longest:
            batch = to(data.context(np.array([row])), self.device)
            wait(self.device)
            begun = time.monotonic()
            z, mask = self.model.encode(batch)
            if m > 1:
                beam_search_lists(self.model, z, mask, width, trie, m)
            else:
                beam_search(self.model, z, mask, width, trie)
            wait(self.device)
            taken.append(1e3 * (time.monotonic() - begun))
        return float(np.median(taken))


def main() -> None:
    p = argparse.ArgumentParser(description="Loss, FLOPs and latency of the three variants.")
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    p.add_argument("--seeds", type=int, nargs="+", default=[1])
    p.add_argument("--steps", type=int, default=240)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--users", type=int, default=1000, help="evaluation users (1000)")
    p.add_argument("--width", type=int, default=50, help="beam (50)")
    p.add_argument("--out", type=Path, help="Markdown file; the numbers go to a JSON file beside it")
    args = p.parse_args()
    tok = Tokenizer.load(args.data / "tokenizer")
    results: list[dict[str, Any]] = []
    for name in args.variants:
        for seed in args.seeds:
            results.append(one(name, seed, tok, args))
            print(json.dumps(results[-1]), flush=True)
    page = table(results, args)
    print(page)
    if args.out:
        args.out.write_text(page)
        args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


def one(name: str, seed: int, tok: Tokenizer, args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one variant from one seed."""
    files = parquet(args.data, "training")
    base = onerec_laptop(
        codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static_features(files[0])
    )
    config = VARIANTS[name](dataclasses.replace(base, item_head=False))
    train = TrainingSet(files, tok.catalogue, config)
    after = TrainingSet(parquet(args.data, "evaluation"), tok.catalogue, config)
    run = Run(config, tok, seed, args)
    step = run.train(train, args.steps, args.batch)
    return {
        "variant": name,
        "seed": seed,
        "parameters": sum(count_parameters(config).values()),
        "forward_mflop": sum(forward_flops(config, LIST).values()) / 1e6,
        "train_mflop": train_flops(config, LIST) / 1e6,
        "step_ms": 1e3 * step,
        "latency_ms": run.latency(after, args.width),
        **run.evaluate(after, args.users, args.width),
    }


def table(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Means over the seeds, and their half range where there are several."""
    columns = {
        "parameters": ("parameters, M", 1e-6, 2),
        "forward_mflop": (f"forward MFLOP, {LIST} targets", 1, 1),
        "step_ms": ("step, ms", 1, 0),
        "latency_ms": (f"latency, ms (beam {args.width})", 1, 1),
        "loss": ("NTP loss, next day", 1, 3),
        "c0": ("level 1", 1, 3),
        "c1": ("level 2", 1, 3),
        "c2": ("level 3", 1, 3),
        "recall": (f"recall@{args.width} of the beam", 1, 4),
    }
    titles = ["variant", "answers", *(title for title, _, _ in columns.values())]
    lines = ["# The three variants on the same data", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in dict.fromkeys(r["variant"] for r in results):
        cells = [name, KEEP[name]]
        for key, (_, scale, digits) in columns.items():
            values = np.array([r[key] * scale for r in results if r["variant"] == name])
            spread = f" ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 and np.ptp(values) else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    clock = "the clock" if args.device == "cuda" else "processor time of one thread"
    lines += [
        "",
        f"Mean over seeds {args.seeds} and half their range; {args.steps} steps of {args.batch} users, alike for all;",
        f"steps in {clock}; latency by the clock, median of the 20 users with the longest histories, one at a time.",
        f"A session-wise answer is a whole list of {LIST}: its latency buys {LIST} items that know of each other. Its",
        "loss sees the list's earlier items, which the others do not.",
        "",
        f"- data: {args.data.name}, {about(args.device)}",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
