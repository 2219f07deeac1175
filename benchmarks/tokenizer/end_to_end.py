"""What the tokenizer is worth at the end: Beauty, recall@10 of the same model with IDs made in different ways.

    python -m benchmarks.tokenizer.end_to_end --prepared prepared/end_to_end --device cuda --jobs 6 --results results

--prepared is written by benchmarks.tokenizer.end_to_end_prepare. The model is `benchmarks.quality`'s SequenceOneRec
with nothing but codes: an event is the sum of its three code embeddings, the decoder's beam names the items, no content
vector, no embedding an item, no item-level head, no co-occurrence. So IDs are all it knows. A hit is the exact item.
With collisions left in, the most popular item of a tuple is what the tuple names, and the others are never hit.

Trainings are processes side by side, one JSON file each in --results; those that exist are not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import REPOSITORY, commit, hardware
from benchmarks.quality.data import Sequences
from benchmarks.quality.onerec import OneRecSequences
from benchmarks.quality.protocol import METRICS, means
from benchmarks.quality.train import Training, rank_onerec, train_onerec
from benchmarks.tokenizer.code_tables import by_kmeans
from models.evaluation.metrics import bootstrap_interval
from models.tokenizer.alignment import AlignmentConfig, ItemInputs, align, aligned_vectors
from models.tokenizer.content.encoder import Tokens
from models.tokenizer.qformer import ItemEncoderConfig
from models.tokenizer.trie import Trie
from models.tokenizer.unique import pack

ROWS = {
    "random_unique": "(a) random codes, one ID an item",
    "rqvae": "(b) RQ-VAE of the text, collisions left in",
    "text": "(c) RQ-Kmeans of the text, no alignment, collisions left in",
    "aligned": "(d) RQ-Kmeans, aligned, collisions left in",
    "aligned_unique": "(e) RQ-Kmeans, aligned, one ID an item",
    "text_unique": "RQ-Kmeans of the text, one ID an item",
    "balanced_unique": "balanced RQ-Kmeans of the text, one ID an item",
    "rqvae_unique": "RQ-VAE of the text, one ID an item",
    "svd_unique": "RQ-Kmeans of text beside PPMI-SVD (the kind svd), one ID an item",
    "svd": "RQ-Kmeans of text beside PPMI-SVD, collisions left in",
}
FIRST = list(ROWS)[:5]  # are trained for all seeds before the others
OPTIONS = OneRecSequences(content=False, own=False, item_loss=0.0, table_dropout=0.2)
BEAM = (0.0, 0.0)  # weights of the joint score: the beam's probability alone
ALIGN = "align"


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as f:
        return {name: f[name] for name in f.files}


def aligned_codes(inputs: dict[str, np.ndarray], encoder: ItemEncoderConfig, steps: int, seed: int, device: str):
    """Codes of vectors aligned on pairs of the training part alone (no captions): nearest, and one an item."""
    tokens = Tokens((inputs["values"] * inputs["scale"]).astype(np.float16), inputs["offsets"])
    config = AlignmentConfig(encoder=dataclasses.replace(encoder, content_dim=tokens.values.shape[1]), steps=steps)
    item = ItemInputs(tokens, inputs["tags"].astype(np.int64), inputs["author"].astype(np.int64))
    model = align(item, inputs["pairs"].astype(np.int64), config, seed=seed, device=device)
    return by_kmeans(aligned_vectors(model, item, device=device), int(inputs["codebook"][0]), seed)


def winners(sid_NL: np.ndarray, popularity_N: np.ndarray, k: int) -> tuple[Trie, float]:
    """The trie of shared tuples: each names its most popular item. Beside it the share of items that none names."""
    order = np.argsort(-popularity_N, kind="stable")
    first = order[np.unique(pack(sid_NL[order].astype(np.int64), k), return_index=True)[1]]
    trie = Trie.build(sid_NL[first], k)
    trie.item = torch.from_numpy(first.astype(np.int32))[trie.item.long()]
    return trie, 1 - len(first) / len(sid_NL)


def one(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and rank one row."""
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")
    inputs = load(args.prepared / "inputs.npz")
    made = args.results / f"aligned_{seed}.npz" if row.startswith("aligned") else args.prepared / "tables.npz"
    kind, _, unique = row.partition("_")
    sid_NL = load(made)["_".join([kind, str(seed), unique]).rstrip("_")].astype(np.int64)
    k, device, begun = int(inputs["codebook"][0]), torch.device(args.device), time.monotonic()
    offsets = np.concatenate([[0], np.cumsum(inputs["lengths"], dtype=np.int64)])
    sequences = Sequences(items=inputs["items"].astype(np.int64), offsets=offsets, num_items=len(sid_NL))
    trie, hidden = winners(sid_NL, inputs["popularity"], k)
    training = Training(epochs=args.epochs, every=args.epochs, seconds=args.seconds, select=BEAM)
    model, selection = train_onerec(
        OPTIONS, training, sequences, sid_NL, np.zeros((len(sid_NL), 1), np.float32), k,
        seed=seed, device=device, trie=trie, progress=lambda line: print(row, seed, line, flush=True),
    )  # fmt: skip
    values = rank_onerec(model, sequences, "test", device, weights=(BEAM,))[BEAM]
    return {
        "row": row,
        "seed": seed,
        "hidden": hidden,
        **means(values),
        "interval": list(bootstrap_interval(values["recall@10"], seed)),
        "validation": selection.curve[-1]["recall@10"],
        "epochs": selection.best_epoch + 1,
        "seconds": round(time.monotonic() - begun, 1),
        "device": hardware(args.device),
    }


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A process each, the alignments first; whatever fails or comes too late is left out."""
    args.results.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + args.budget

    def process(row: str, seed: int, after: Future | None = None) -> None:
        file = args.results / (f"aligned_{seed}.npz" if row == ALIGN else f"{row}_{seed}.json")
        if after is not None:
            after.result()
        left = ends - time.monotonic()
        if file.exists() or left < 1:
            return
        command = [sys.executable, "-m", "benchmarks.tokenizer.end_to_end", *sys.argv[1:], "--one", row, str(seed)]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "") or "."}
        with open(file.with_suffix(".log"), "w") as log:
            try:
                subprocess.run(
                    command, cwd=REPOSITORY, env=os.environ | environment, stdout=log, stderr=log, timeout=left
                )
            except subprocess.TimeoutExpired:
                print(row, seed, "cut by the budget", flush=True)
        if file.exists() and row != ALIGN:
            found = json.loads(file.read_text())
            print(f"{row} {seed}: recall@10 {found['recall@10']:.4f}, {found['seconds']} s", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        needs = {
            s: pool.submit(process, ALIGN, s) for s in args.seeds if any(r.startswith("aligned") for r in args.rows)
        }
        for rows in ([r for r in args.rows if r in FIRST], [r for r in args.rows if r not in FIRST]):
            for seed, row in itertools.product(args.seeds, rows):
                pool.submit(process, row, seed, needs[seed] if row.startswith("aligned") else None)
    return [json.loads(f.read_text()) for f in sorted(args.results.glob("*_[0-9]*.json"))]


def page(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The table: mean over seeds and standard deviation."""
    head = ["IDs", "seeds", "items that no tuple names", *METRICS, "95 % over users, recall@10", "epochs", "seconds"]
    text = "# What IDs are worth at the end: Beauty, test, full ranking\n\n"
    text += "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n"
    for row, title in ROWS.items():
        mine = [r for r in results if r["row"] == row]
        if not mine:
            continue
        numbers = [np.array([r[m] for r in mine]) for m in METRICS]
        cells = [f"{v.mean():.4f} ± {f'{v.std(ddof=1):.4f}' if len(v) > 1 else '-'}" for v in numbers]
        low, high = np.mean([r["interval"] for r in mine], 0)
        epochs = " ".join(str(r["epochs"]) for r in mine)
        text += f"| {title} | {len(mine)} | {np.mean([r['hidden'] for r in mine]):.1%} | {' | '.join(cells)}"
        text += f" | {low:.4f} to {high:.4f} | {epochs} | {np.mean([r['seconds'] for r in mine]):.0f} |\n"
    notes = " ".join((__doc__ or "").split("The model is ")[1].split("Trainings are")[0].split())
    asked = " ".join(Path(a).name if "/" in a else a for a in sys.argv[1:])
    text += f"\nThe model is {notes} ± is the standard deviation over seeds (-: 1 seed, no deviation).\n"
    devices = ", ".join(sorted({r["device"] for r in results}))
    text += f"\n- command: `python -m benchmarks.tokenizer.end_to_end {asked}`\n- hardware: {devices}\n"
    return text + f"- commit: {args.commit or commit()}\n- date: {datetime.now(UTC):%Y-%m-%d %H:%M UTC}\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder written by end_to_end_prepare")
    p.add_argument("--results", type=Path, default=Path("build/end_to_end"))
    p.add_argument("--rows", nargs="+", choices=sorted(ROWS), default=list(ROWS))
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--device", default="cuda")
    p.add_argument("--jobs", type=int, default=6, help="trainings side by side")
    p.add_argument("--epochs", type=int, default=60, help="the last one is kept")
    p.add_argument("--seconds", type=float, default=float("inf"), help="longest training; its rate falls accordingly")
    p.add_argument("--budget", type=float, default=float("inf"), help="seconds after which nothing runs any more")
    p.add_argument("--steps", type=int, default=2000, help="of alignment")
    p.add_argument("--small", action="store_true", help="4 x 64, two layers, instead of 4 x 512, four: for a processor")
    p.add_argument("--commit", default="", help="of the code, where there is no git")
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    p.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        row, seed = args.one[0], int(args.one[1])
        if row == ALIGN:
            encoder = ItemEncoderConfig(dim=64, layers=2, heads=4) if args.small else ItemEncoderConfig()
            inputs = load(args.prepared / "inputs.npz")
            nearest, unique = aligned_codes(inputs, encoder, args.steps, seed, args.device)
            part = args.results / f"aligned_{seed}.part.npz"
            np.savez_compressed(part, **{f"aligned_{seed}": nearest, f"aligned_{seed}_unique": unique})
            os.replace(part, args.results / f"aligned_{seed}.npz")
        else:
            text = json.dumps(one(row, seed, args))
            (args.results / f"{row}_{seed}.json").write_text(text + "\n")
        return
    args.out.write_text(page(run_all(args), args))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
