"""Collisions: how often two items get the same codes, and what an ID of its own costs and gains.

    python -m benchmarks.tokenizer.collisions --beauty DATA/amazon14/beauty --kuairand DATA/kuairand-pure

Beside the nearest codes (collisions left in; the most popular item of a tuple wins it) stand unique IDs. Cost: share
of the variance that the codes lose. Gain: with IDs left in, an item that is not the most popular of its tuple cannot be
recommended; the share of positives that fall on such items bounds what recall can lose. Recall of trained models
with both: the ablation of the end-to-end benchmark.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.tokenizer.data import Source, beauty, kuairand
from benchmarks.tokenizer.page import heading
from models.tokenizer import metrics, rq_kmeans
from models.tokenizer.unique import pack, unique_codes


def lines(name: str, source: Source, k: int, seed: int) -> str:
    x = source.vectors
    books = [b.numpy() for b in rq_kmeans.fit(torch.from_numpy(x), 3, k, seed)]
    nearest = rq_kmeans.encode(torch.from_numpy(x), [torch.from_numpy(b) for b in books]).numpy()
    begun = time.process_time()
    unique = unique_codes(nearest, x, books)
    took = time.process_time() - begun
    variance = float(np.square(x - x.mean(0)).sum(1).mean())
    popularity = np.bincount(source.liked, minlength=len(x))
    order = np.argsort(-popularity, kind="stable")
    _, winner = np.unique(pack(nearest[order], k), return_index=True)
    reachable = np.zeros(len(x), bool)
    reachable[order[winner]] = True
    text = ""
    for way, codes, can in (("nearest, most popular wins", nearest, reachable), ("one ID an item", unique, None)):
        rebuilt = np.sum([b[codes[:, i]] for i, b in enumerate(books)], axis=0)
        loss = metrics.reconstruction_loss(x, rebuilt, variance)
        lost = 0.0 if can is None else popularity[~can].sum() / popularity.sum()
        hidden = 0.0 if can is None else (~can).mean()
        text += (
            f"| {name} | {k} | {way} | {metrics.collision_rate(codes):.4f} | {loss:.4f} | {hidden:.4f} | {lost:.4f}"
            f" | {'–' if can is not None else f'{took:.2f}'} |\n"
        )
    return text


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--beauty", type=Path, required=True)
    p.add_argument("--kuairand", type=Path, required=True)
    p.add_argument("--cache", type=Path, default=Path("build"))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    command = "python -m benchmarks.tokenizer.collisions --beauty DATA/amazon14/beauty --kuairand DATA/kuairand-pure"
    text = heading("Collisions", f"{command} --out benchmarks/tokenizer/collisions.md")
    text += (
        f"Seed {args.seed}. Collisions: share of the items that share their tuple. Hidden: items that never can be"
        " recommended. Out of reach: positives of the training interactions that fall on hidden items.\n\n"
        "| vectors | codes a level | IDs | collisions | reconstruction loss | hidden items | positives out of reach"
        " | CPU s to assign |\n|---|---|---|---|---|---|---|---|\n"
    )
    words, videos = beauty(args.beauty, args.cache), kuairand(args.kuairand)
    for k in (64, 256):
        text += lines(f"Beauty, {len(words.vectors):,}", words, k, args.seed)
    for k in (32, 128):
        text += lines(f"KuaiRand, {len(videos.vectors):,}", videos, k, args.seed)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
