"""Prepare the end-to-end benchmark: code tables of Beauty by every way without alignment, and what alignment needs.

    python -m benchmarks.quality.prepare --data AMAZON/beauty --out build/quality/beauty --seeds
    python -m benchmarks.tokenizer.alignment_prepare --beauty AMAZON/beauty --out prepared/alignment
    python -m benchmarks.tokenizer.end_to_end_prepare --quality build/quality/beauty --alignment prepared/alignment

Reads the sequences and sentence vectors of the first, the content tokens of the second. Writes OUT/tables.npz (codes
[N, 3] of every way and seed, collisions left in, `_unique` without them) and OUT/inputs.npz (sequences, popularity,
content tokens, item pairs of the training part). A user's last two items are in nothing of this.

Legend: N items, K codes a level, D dimensions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.quality.data import Sequences
from benchmarks.quality.prepare import COLLABORATIVE_WEIGHT, CONTENT_DIM, vectors
from benchmarks.tokenizer.code_tables import by_kmeans, by_rq_vae, random_codes
from models.tokenizer.pairs import PairConfig, training_pairs
from models.tokenizer.state import codebook_size_for


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quality", type=Path, required=True, help="folder written by benchmarks.quality.prepare")
    p.add_argument("--alignment", type=Path, required=True, help="folder written by alignment_prepare")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--out", type=Path, default=Path("prepared/end_to_end"))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sequences = Sequences.load(args.quality)
    rows, k = sequences.training(), codebook_size_for(sequences.num_items)
    users, liked = np.repeat(np.arange(len(rows)), [len(r) for r in rows]), np.concatenate(rows)
    with np.load(args.alignment / "Beauty.npz", allow_pickle=False) as f:
        kept = {name: f[name] for name in ("values", "scale", "offsets", "tags", "author")}
    if len(kept["tags"]) != sequences.num_items:
        raise ValueError(f"{args.alignment} holds {len(kept['tags'])} items, {args.quality} {sequences.num_items}")
    pairs = training_pairs(users, liked, sequences.num_items, PairConfig(), args.seeds[0])
    np.savez_compressed(
        args.out / "inputs.npz",
        items=sequences.items.astype(np.int16),
        lengths=np.diff(sequences.offsets).astype(np.int16),
        popularity=np.bincount(liked, minlength=sequences.num_items).astype(np.int32),
        pairs=pairs.astype(np.int16),
        codebook=np.array([k]),
        **kept,
    )
    text = np.load(args.quality / "text.npy", allow_pickle=False).astype(np.float32)
    tables, shared = {}, {}
    for seed in args.seeds:
        fused = vectors(text, sequences, COLLABORATIVE_WEIGHT, seed)
        only_text = np.ascontiguousarray(fused[:, :CONTENT_DIM])
        tables[f"random_{seed}_unique"] = random_codes(sequences.num_items, k, seed).astype(np.int16)
        for name, made in (
            ("text", by_kmeans(only_text, k, seed)),
            ("balanced", by_kmeans(only_text, k, seed, variant="balanced")),
            ("svd", by_kmeans(fused, k, seed)),
            ("rqvae", by_rq_vae(only_text, k, seed)),
        ):
            tables[f"{name}_{seed}"], tables[f"{name}_{seed}_unique"] = made
            shared[f"{name}_{seed}"] = len(np.unique(made[0], axis=0))
            print(name, seed, f"{shared[f'{name}_{seed}']:,} different tuples of {len(text):,} items", flush=True)
        np.savez_compressed(args.out / "tables.npz", **tables)
    (args.out / "prepared.json").write_text(json.dumps({"codebook_size": k, "tuples": shared}, indent=1) + "\n")


if __name__ == "__main__":
    main()
