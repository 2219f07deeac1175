"""What alignment buys: recall of held-out pairs before and after. KuaiRand (tags, author) and Amazon Beauty (titles).

python -m benchmarks.tokenizer.alignment --kuairand LOGS --beauty AMAZON/beauty --seeds 1 2 3 --scratch SCRATCH

A fifth of the users is held out (their pairs are the test), and so is a tenth of the items ("cold": training sees no
interaction with them, as if they were new). Two kinds of pairs, neither chosen by any of the methods compared:
- same user: two random positives of a held-out user, up to four pairs each;
- Swing: for each item the nearest one by Swing over the held-out users alone.
recall@k: share of pairs (i, j) with j among the k nearest of i by cosine, over the whole catalogue. lift: how much
likelier a same-user pair shares the first code of RQ-Kmeans than two random items. Beauty's tags are its categories; it
has no authors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch

from benchmarks.alignment.harness import Column, commit, hardware, table
from models.tokenizer import rq_kmeans
from models.tokenizer.aligned import AlignedConfig, aligned_small
from models.tokenizer.alignment import AlignmentConfig, ItemInputs, align, aligned_vectors
from models.tokenizer.content.encoder import Tokens, content_encoder, encode_all
from models.tokenizer.content.items import read_items
from models.tokenizer.pairs import training_pairs
from models.tokenizer.qformer import ItemEncoder
from models.tokenizer.refresh import codebook_size_for
from models.tokenizer.representation import Representation, RepresentationConfig, _content_of, _unit
from models.tokenizer.swing import SwingConfig, swing

SHOWN = ("recall10", "recall50", "swing50", "cold50", "tag10", "lift", "seconds")


@dataclasses.dataclass
class Source:
    """A catalogue and positives (users, rows of items) in time order."""

    name: str
    items: pa.Table
    users: np.ndarray
    liked: np.ndarray


def kuairand(folder: Path) -> Source:
    """Positives (long view or like) of the history and the log before its last day."""
    videos = csv.read_csv(folder / "video_features_basic_pure.csv")
    ids = videos["video_id"].to_numpy()
    tags = [[int(float(t)) for t in str(x or "").split(",") if t] for x in videos["tag"].to_pylist()]
    items = pa.table(
        {
            "item_id": ids,
            "author_id": videos["author_id"].cast(pa.float64()).fill_null(-1).cast(pa.int64()),
            "tags": pa.array(tags, pa.list_(pa.int32())),
        }
    )
    old = pq.read_table(folder / "history_4_08_to_4_24_last50.parquet").sort_by(
        [("user_id", "ascending"), ("pos", "ascending")]
    )
    log = csv.read_csv(folder / "log_standard_4_25_to_5_06_pure.csv").sort_by("time_ms")
    log = log.filter(pa.compute.less(log["date"], 20220506))
    users = np.concatenate([old["user_id"].to_numpy(), log["user_id"].to_numpy()])
    liked = np.concatenate([old["video_id"].to_numpy(), log["video_id"].to_numpy()])
    positive = [(t["long_view"].to_numpy() > 0) | (t["is_like"].to_numpy() > 0) for t in (old, log)]
    keep = np.concatenate(positive)
    order = np.argsort(ids)
    row = order[np.searchsorted(ids[order], liked[keep])]
    return Source("KuaiRand", items, users[keep], row)


def beauty(folder: Path) -> Source:
    """The training part of the sequences: all but the last two items of a user."""
    rows = [json.loads(line) for line in (folder / "items.jsonl").open()]
    names: dict[str, int] = {}
    tags = [[names.setdefault(c, len(names)) for path in r["categories"] for c in path[1:]] for r in rows]
    items = pa.table(
        {
            "item_id": [r["item_id"] for r in rows],
            "author_id": [-1] * len(rows),
            "tags": pa.array(tags, pa.list_(pa.int32())),
            "caption": [r["title"] or "" for r in rows],
        }
    )
    position = {r["item_id"]: n for n, r in enumerate(rows)}
    users, liked = [], []
    for line in (folder / "sequences.txt").open():
        user, *sequence = map(int, line.split())
        users += [user] * (len(sequence) - 2)
        liked += [position[i] for i in sequence[:-2]]
    return Source("Beauty", items, np.array(users), np.array(liked))


@dataclasses.dataclass
class Split:
    """Training positives and the held-out pairs of one seed."""

    users: np.ndarray
    liked: np.ndarray
    same_user: np.ndarray
    cold: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, source: Source, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        names, user = np.unique(source.users, return_inverse=True)
        held = rng.random(len(names)) < 0.2
        cold = rng.random(len(source.items)) < 0.1
        out = held[user]
        train = ~out & ~cold[source.liked]
        pairs = []
        order = np.flatnonzero(out)[np.argsort(user[out], kind="stable")]
        for rows in np.split(order, np.flatnonzero(np.diff(user[order])) + 1):
            mine = np.unique(source.liked[rows])
            if len(mine) > 1:
                pairs += [rng.choice(mine, 2, replace=False) for _ in range(min(4, len(mine) - 1))]
        pair = np.array(pairs)
        is_cold = cold[pair[:, 0]]
        log = pa.table({"user_id": user[out], "item_id": source.liked[out]})
        found = swing(log, SwingConfig(min_items=2, neighbours=1))
        near = np.stack([found["item_id"].to_numpy(), found["neighbour_id"].to_numpy()], 1)
        warm = ~cold[pair].any(1)
        return cls(source.users[train], source.liked[train], pair[warm], pair[is_cold], near[~cold[near].any(1)])


def measure(vectors: np.ndarray, split: Split, tags: list[set[int]], seed: int) -> dict[str, float]:
    """Numbers of one representation [N, D]."""
    unit = torch.from_numpy(_unit(vectors.astype(np.float32)))

    def ranks(pairs: np.ndarray) -> np.ndarray:
        out = []
        for chunk in np.array_split(pairs, max(1, len(pairs) // 1000)):
            score = unit[chunk[:, 0]] @ unit.T
            own = score.gather(1, torch.from_numpy(chunk[:, 1:]))
            score.scatter_(1, torch.from_numpy(chunk[:, :1]), -9)
            out.append(((score > own).sum(1) + 0.5 * ((score == own).sum(1) - 1)).numpy())  # a tie counts half
        return np.concatenate(out)

    rng = np.random.default_rng(seed)
    some = rng.choice(len(unit), min(1000, len(unit)), replace=False)
    score = unit[some] @ unit.T
    score[torch.arange(len(some)), torch.from_numpy(some)] = -9
    near = score.topk(10).indices.numpy()
    shared = [bool(tags[i] & tags[j]) for i, row in zip(some, near) for j in row if tags[i]]
    same, cold, swung = ranks(split.same_user), ranks(split.cold), ranks(split.near)
    books = rq_kmeans.fit(torch.from_numpy(vectors.astype(np.float32)), 1, codebook_size_for(len(unit)), seed)
    code = rq_kmeans.encode(torch.from_numpy(vectors.astype(np.float32)), books)[:, 0].numpy()
    share = np.bincount(code) / len(code)
    together = float((code[split.same_user[:, 0]] == code[split.same_user[:, 1]]).mean())
    return {
        "recall10": float((same < 10).mean()),
        "recall50": float((same < 50).mean()),
        "swing50": float((swung < 50).mean()),
        "cold50": float((cold < 50).mean()),
        "tag10": float(np.mean(shared)),
        "lift": together / float((share**2).sum()),
    }


def variants(base: AlignmentConfig, captions: bool) -> dict[str, AlignmentConfig]:
    """Aligned encoders that are compared; the first is the default."""
    change = dataclasses.replace
    plain = {
        "aligned, pairs alone": change(base, caption_weight=0.0),
        "without residuals": change(base, caption_weight=0.0, encoder=change(base.encoder, residual=False)),
        "tau 0.03": change(base, caption_weight=0.0, temperature=0.03),
        "tau 0.2": change(base, caption_weight=0.0, temperature=0.2),
        "author hidden never": change(base, caption_weight=0.0, author_dropout=0.0),
    }
    told = {"aligned, pairs and captions": base, "captions x 10": change(base, caption_weight=10 * base.caption_weight)}
    return plain | (told if captions else {})


def run(
    source: Source, config: AlignedConfig, seed: int, wanted: list[str], tokens: Tokens | None
) -> list[dict[str, Any]]:
    """All representations of one source and seed."""
    split = Split.of(source, seed)
    tags = [set(t) for t in source.items["tags"].to_pylist()]
    results: list[dict[str, Any]] = []

    def add(name: str, make: Callable[[], np.ndarray]) -> None:
        if wanted and not any(w in name for w in wanted):
            return
        begun = time.monotonic()
        vectors = make()
        row = {"variant": name, "seed": seed, "seconds": time.monotonic() - begun} | measure(vectors, split, tags, seed)
        results.append(row)
        print(
            source.name,
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()},
            file=sys.stderr,
            flush=True,
        )

    content = _content_of(source.items)
    fit = lambda c: Representation.fit(c, content, split.users, split.liked, seed)[1]  # noqa: E731
    add("content alone (hashed words, tags, author)", lambda: fit(RepresentationConfig(collaborative_weight=1e-6)))
    items = read_items(source.items)
    if tokens is not None:
        mean = [
            tokens.values[a:b].astype(np.float32).mean(0) for a, b in zip(tokens.offsets, tokens.offsets[1:]) if b > a
        ]
        has = np.diff(tokens.offsets) > 0
        pooled = np.zeros((len(items), tokens.values.shape[1]), np.float32)
        pooled[has] = mean
        add("text encoder, mean of tokens", lambda: pooled)
    add("svd (content beside PPMI-SVD)", lambda: fit(RepresentationConfig()))
    encoder = dataclasses.replace(config.alignment.encoder, content_dim=tokens.values.shape[1] if tokens else 0)
    inputs = ItemInputs.of(items, tokens, encoder)

    def before() -> np.ndarray:
        torch.manual_seed(seed)
        untrained = ItemEncoder(encoder)
        rows = np.unique(split.liked)
        untrained.learn_of(torch.from_numpy(inputs.tags[rows]), torch.from_numpy(inputs.author[rows]))
        return aligned_vectors(untrained, inputs)

    add("item encoder before alignment", before)
    pairs = training_pairs(split.users, split.liked, len(items), config.pairs, seed)
    print(f"{source.name}: {len(pairs):,} training pairs", file=sys.stderr, flush=True)
    for name, settings in variants(config.alignment, tokens is not None).items():
        c = dataclasses.replace(
            settings, encoder=dataclasses.replace(settings.encoder, content_dim=encoder.content_dim)
        )
        add(name, lambda c=c: aligned_vectors(align(inputs, pairs, c, seed=seed, progress=_quiet), inputs))
    for name, kind in (("user-to-item pairs alone", {"neighbours": 0}), ("Swing pairs alone", {"targets": 0})):
        only = training_pairs(split.users, split.liked, len(items), dataclasses.replace(config.pairs, **kind), seed)
        c = dataclasses.replace(config.alignment, encoder=encoder, caption_weight=0.0)
        add(
            name,
            lambda c=c, only=only: aligned_vectors(align(inputs, only, c, seed=seed, progress=_quiet), inputs),
        )
    return results


def _quiet(line: str) -> None:
    """No progress lines: a benchmark prints its own."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kuairand", type=Path, help="folder of the KuaiRand-Pure CSV files")
    p.add_argument("--beauty", type=Path, help="folder with items.jsonl and sequences.txt")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--full", action="store_true", help="4 x 512 (a GPU's size) instead of 4 x 64")
    p.add_argument("--steps", type=int, help="alignment steps instead of the configuration's")
    p.add_argument("--variants", nargs="+", default=[], help="only variants with one of these in their name")
    p.add_argument("--scratch", type=Path, required=True, help="folder where content tokens are kept")
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = p.parse_args()
    config = AlignedConfig() if args.full else aligned_small()
    if args.steps:
        config = dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, steps=args.steps))
    page = "# What alignment buys\n"
    begun = time.monotonic()
    for load, folder in ((kuairand, args.kuairand), (beauty, args.beauty)):
        if folder is None:
            continue
        source, tokens = load(folder), None
        if "caption" in source.items.column_names:
            tokens = kept_tokens(source, args.scratch)
        results = [r for s in args.seeds for r in run(source, config, s, args.variants, tokens)]
        order = list(dict.fromkeys(r["variant"] for r in results))
        columns = [Column(key=k, title=k, digits=1 if k in ("lift", "seconds") else 3) for k in SHOWN]
        page += f"\n## {source.name}: {len(source.items):,} items, {len(source.users):,} positives\n\n"
        page += table(results, order, columns) + "\n"
    about = {
        "command": " ".join(
            ["python", "-m", "benchmarks.tokenizer.alignment", *(a for a in sys.argv[1:] if "/" not in a)]
        ),
        "encoder": str(dataclasses.asdict(config.alignment)),
        "hardware": hardware("cpu") + f", load {os.getloadavg()[0]:.1f}: seconds are not comparable between runs",
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - begun),
    }
    page += f"\n{__doc__.split('--scratch SCRATCH')[1].strip()}\n\nMean over seeds {args.seeds} and 95 % interval.\n\n"
    page += "\n".join(f"- {k}: {v}" for k, v in about.items()) + "\n"
    args.out.write_text(page)
    print(page)


def kept_tokens(source: Source, scratch: Path) -> Tokens:
    """Content tokens of a source, encoded once."""
    values, offsets = (scratch / f"{source.name}_{part}.npy" for part in ("tokens", "offsets"))
    if not offsets.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        tokens = encode_all(content_encoder("text"), read_items(source.items), lambda x: print(x, file=sys.stderr))
        np.save(values, tokens.values)
        np.save(offsets, tokens.offsets)
    return Tokens(np.load(values, allow_pickle=False), np.load(offsets, allow_pickle=False))


if __name__ == "__main__":
    main()
