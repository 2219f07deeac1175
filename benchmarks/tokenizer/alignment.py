"""What alignment buys: recall of held-out pairs before and after. KuaiRand (tags, author), Amazon Beauty (titles).

python -m benchmarks.tokenizer.alignment --prepared prepared/alignment --seeds 1 2 3 --device cuda --full

--prepared is written by benchmarks.tokenizer.alignment_prepare, which says what is held out. Without --full the encoder
is 4 x 64, for a processor. recall@k: share of held-out pairs (i, j) of a user with j among the k nearest of i by cosine
over the whole catalogue; swing50: the same for pairs by Swing of the held-out users; cold50: i is an item without any
interaction in training; tag10: share of the ten nearest that have a tag in common; lift: how much likelier a same-user
pair shares the first code of RQ-Kmeans than two random items.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.alignment.harness import Column, table
from benchmarks.machine import commit, hardware
from models.tokenizer import rq_kmeans
from models.tokenizer.alignment import AlignmentConfig, ItemInputs, align, aligned_vectors
from models.tokenizer.content.encoder import Tokens
from models.tokenizer.qformer import ItemEncoder, ItemEncoderConfig

SHOWN = ("recall10", "recall50", "swing50", "cold50", "tag10", "lift", "seconds")
Data = dict[str, np.ndarray]


def measure(vectors: np.ndarray, data: Data, seed: int, device: str) -> dict[str, float]:
    """Numbers of one representation [N, D]."""
    x = torch.from_numpy(vectors.astype(np.float32)).to(device)
    unit = torch.nn.functional.normalize(x, dim=-1)

    def near(pairs: np.ndarray, k: int) -> float:
        ranks = []
        for chunk in torch.from_numpy(pairs).to(device).split(1000):
            score = unit[chunk[:, 0]] @ unit.T
            own = score.gather(1, chunk[:, 1:])
            score.scatter_(1, chunk[:, :1], -9)
            ranks.append((score > own).sum(1) + 0.5 * ((score == own).sum(1) - 1))  # a tie counts half
        return float((torch.cat(ranks) < k).float().mean())

    rng = np.random.default_rng(seed)
    some = rng.choice(len(x), min(1000, len(x)), replace=False)
    score = unit[torch.from_numpy(some).to(device)] @ unit.T
    score[torch.arange(len(some)), torch.from_numpy(some)] = -9
    tags = [set(t[t >= 0].tolist()) for t in data["tags"]]
    shared = [bool(tags[i] & tags[j]) for i, js in zip(some, score.topk(10).indices.tolist()) for j in js if tags[i]]
    books = rq_kmeans.fit(x, 1, int(data["codebook"][0]), seed)
    code = rq_kmeans.encode(x, books)[:, 0].cpu().numpy()
    together = float((code[data["same_user"][:, 0]] == code[data["same_user"][:, 1]]).mean())
    return {
        "recall10": near(data["same_user"], 10),
        "recall50": near(data["same_user"], 50),
        "swing50": near(data["near"], 50),
        "cold50": near(data["cold"], 50),
        "tag10": float(np.mean(shared)),
        "lift": together / float(np.square(np.bincount(code) / len(code)).sum()),
    }


def variants(base: AlignmentConfig, captions: bool) -> dict[str, tuple[AlignmentConfig, str]]:
    """Name -> configuration and pairs of what is trained."""
    change = dataclasses.replace
    told, base = base, change(base, caption_weight=0.0)
    named = {
        "aligned, pairs alone": (base, "both"),
        "user-to-item pairs alone": (base, "user_pairs"),
        "Swing pairs alone": (base, "swing_pairs"),
        "printed QFormer, no residuals": (change(base, encoder=change(base.encoder, residual=False)), "both"),
        "tau 0.03": (change(base, temperature=0.03), "both"),
        "tau 0.2": (change(base, temperature=0.2), "both"),
    }
    if captions:
        named["aligned, pairs and captions"] = (told, "both")
        named["captions x 10"] = (change(told, caption_weight=10 * told.caption_weight), "both")
    else:
        named["author hidden never"] = (change(base, author_dropout=0.0), "both")
    return named


def load(name: str, args: argparse.Namespace) -> Data:
    """What alignment_prepare left of a source."""
    with np.load(args.prepared / f"{name}.npz", allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


def run(name: str, data: Data, config: AlignmentConfig, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All representations of one source and seed."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []

    def add(variant: str, make: Callable[[], np.ndarray]) -> None:
        if args.variants and not any(w in variant for w in args.variants):
            return
        begun = time.monotonic()
        vectors = make()
        row = {"variant": variant, "seed": seed, "seconds": time.monotonic() - begun}
        results.append(row | measure(vectors, data, seed, args.device))
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in results[-1].items()}
        print(name, json.dumps(shown), file=sys.stderr, flush=True)

    add("content alone (hashed tags, author, words)", lambda: data["content"])
    tokens = None
    if "values" in data:
        tokens = Tokens((data["values"] * data["scale"]).astype(np.float16), data["offsets"])
        add("text encoder, mean of tokens", lambda: data["pooled"])
    add("svd (content beside PPMI-SVD), today's default", lambda: data["svd"])
    captions = data["captions"].astype(np.int64) if "captions" in data else None
    encoder = dataclasses.replace(config.encoder, content_dim=tokens.values.shape[1] if tokens else 0)
    inputs = ItemInputs(tokens, data["tags"], data["author"], captions)

    def before() -> np.ndarray:
        torch.manual_seed(seed)
        untrained, rows = ItemEncoder(encoder), data["warm_rows"]
        untrained.learn_of(torch.from_numpy(inputs.tags[rows]), torch.from_numpy(inputs.author[rows]))
        return aligned_vectors(untrained.to(args.device), inputs, device=args.device)

    add("item encoder before alignment", before)
    pairs = {k: data[k] for k in ("user_pairs", "swing_pairs")}
    pairs["both"] = np.concatenate(list(pairs.values()))
    for variant, (c, kind) in variants(dataclasses.replace(config, encoder=encoder), "captions" in data).items():

        def trained(c: AlignmentConfig = c, kind: str = kind) -> np.ndarray:
            model = align(inputs, pairs[kind], c, seed=seed, device=args.device, progress=lambda line: None)
            return aligned_vectors(model, inputs, device=args.device)

        add(variant, trained)
    return results


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder written by alignment_prepare")
    p.add_argument("--sources", nargs="+", default=["KuaiRand", "Beauty"])
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of training; the split is one")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--full", action="store_true", help="4 x 512, four layers, instead of 4 x 64, two")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--jobs", type=int, default=1, help="processes at a time, one a source and seed (1)")
    p.add_argument("--variants", nargs="+", default=[], help="only variants with one of these in their name")
    p.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = p.parse_args()
    encoder = ItemEncoderConfig() if args.full else ItemEncoderConfig(dim=64, layers=2, heads=4)
    config = AlignmentConfig(encoder=encoder, steps=args.steps, batch=args.batch)
    page, begun = "# What alignment buys\n", time.monotonic()
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        tasks = {n: [pool.submit(run, n, load(n, args), config, s, args) for s in args.seeds] for n in args.sources}
        raw = {n: [r for task in tasks[n] for r in task.result()] for n in args.sources}
    for name, results in raw.items():
        data = load(name, args)
        order = list(dict.fromkeys(r["variant"] for r in results))
        columns = [Column(key=k, title=k, digits=1 if k in ("lift", "seconds") else 4) for k in SHOWN]
        pairs = f"{len(data['user_pairs']):,} user-to-item and {len(data['swing_pairs']):,} Swing pairs"
        page += f"\n## {name}: {len(data['tags']):,} items, {int(data['positives'][0]):,} positives, {pairs}\n\n"
        page += table(results, order, columns) + "\n"
    about = {
        "command": " ".join(["python -m benchmarks.tokenizer.alignment", *(a for a in sys.argv[1:] if "/" not in a)]),
        "settings": str(dataclasses.asdict(config)),
        "hardware": hardware(args.device) + f", load {os.getloadavg()[0]:.1f}",
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - begun),
    }
    notes = (__doc__ or "").split("for a processor. ")[1].strip()
    page += f"\n{notes}\n\nMean over seeds {args.seeds} and 95 % interval (Student's t).\n\n"
    page += "\n".join(f"- {k}: {v}" for k, v in about.items()) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    stem = "alignment_full" if args.full else "alignment"
    (args.out / f"{stem}.json").write_text(json.dumps({"about": about, "results": raw}, indent=1) + "\n")
    (args.out / f"{stem}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
