"""Prepare the benchmark of alignment: positives, pairs, content tokens and the vectors that need no training.

python -m benchmarks.tokenizer.alignment_prepare --kuairand LOGS --beauty AMAZON/beauty --out prepared/alignment

Writes NAME.npz a source, small enough to carry to a machine with a GPU (content tokens are cut to --longest an item,
brought to --width dimensions by PCA and kept as int8), where benchmarks.tokenizer.alignment trains and measures.

A fifth of the users is held out (their pairs are the test), and so is a tenth of the items ("cold": training sees no
interaction with them, as if they were new). Two kinds of pairs, neither chosen by any of the methods compared:
- same user: two random positives of a held-out user, up to four pairs each;
- Swing: for each item the nearest one by Swing over the held-out users alone.
Beauty's tags are its categories, its captions the titles; it has no authors. KuaiRand has tags and authors, no text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as csv
import pyarrow.parquet as pq

from models.tokenizer.captions import caption_ids
from models.tokenizer.content.encoder import Tokens, content_encoder, encode_all
from models.tokenizer.content.items import hashed, read_items
from models.tokenizer.pairs import PairConfig, training_pairs
from models.tokenizer.qformer import ItemEncoderConfig
from models.tokenizer.representation import RepresentationConfig, represent
from models.tokenizer.state import codebook_size_for
from models.tokenizer.swing import swing
from models.tokenizer.swing_scores import SwingConfig


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


def content_tokens(items: pa.Table, kept: Path, longest: int, width: int) -> dict[str, np.ndarray]:
    """Tokens of the text encoder as int8 [n, width] with one scale, offsets, and each item's mean of all its tokens."""
    values, offsets = kept / "tokens.npy", kept / "offsets.npy"
    if not offsets.exists():
        kept.mkdir(parents=True, exist_ok=True)
        tokens = encode_all(content_encoder("text"), read_items(items), lambda line: print(line, file=sys.stderr))
        np.save(values, tokens.values)
        np.save(offsets, tokens.offsets)
    tokens = Tokens(np.load(values, allow_pickle=False), np.load(offsets, allow_pickle=False))
    length = np.diff(tokens.offsets)
    x = tokens.values.astype(np.float32)
    mean = np.add.reduceat(x, tokens.offsets[:-1][length > 0], axis=0) / length[length > 0, None]
    pooled = np.zeros((len(length), x.shape[1]), np.float32)
    pooled[length > 0] = mean
    first = np.concatenate([np.arange(a, min(b, a + longest)) for a, b in zip(tokens.offsets, tokens.offsets[1:])])
    centred = x[first] - x[first].mean(0)
    _, basis = np.linalg.eigh(centred.T @ centred)
    narrow = centred @ basis[:, ::-1][:, :width]
    scale = np.abs(narrow).max() / 127
    return {
        "values": np.round(narrow / scale).astype(np.int8),
        "scale": np.array([scale], np.float32),
        "offsets": np.concatenate([[0], np.cumsum(np.minimum(length, longest))]),
        "pooled": pooled.astype(np.float16),
    }


def prepare(source: Source, out: Path, seed: int, longest: int, width: int) -> None:
    """Everything of one source into OUT/NAME.npz."""
    split, items, config = Split.of(source, seed), read_items(source.items), ItemEncoderConfig()
    tags, author = hashed(items, config.tag_buckets, config.author_buckets)
    about = {"users": split.users, "liked": split.liked, "previous": None, "seed": seed}
    alone = RepresentationConfig(collaborative_weight=1e-6)
    u2i, i2i = (
        training_pairs(split.users, split.liked, len(items), PairConfig(**kind), seed)
        for kind in ({"neighbours": 0}, {"targets": 0})
    )
    arrays = {
        "tags": tags,
        "author": author,
        "user_pairs": u2i,
        "swing_pairs": i2i,
        "same_user": split.same_user,
        "cold": split.cold,
        "near": split.near,
        "warm_rows": np.unique(split.liked),
        "positives": np.array([len(source.users)]),
        "codebook": np.array([codebook_size_for(len(items))]),
        "content": represent(source.items, config=alone, **about)[1].astype(np.float16),
        "svd": represent(source.items, config=RepresentationConfig(), **about)[1].astype(np.float16),
    }
    if "caption" in source.items.column_names:
        arrays |= content_tokens(source.items, out / "kept" / source.name, longest, width)
        arrays["captions"] = caption_ids([i.caption for i in items]).astype(np.int32)
    np.savez_compressed(out / f"{source.name}.npz", **arrays)
    print(f"{source.name}: {len(items):,} items, {len(u2i):,} user-to-item and {len(i2i):,} Swing pairs")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kuairand", type=Path, help="folder of the KuaiRand-Pure CSV files")
    p.add_argument("--beauty", type=Path, help="folder with items.jsonl and sequences.txt")
    p.add_argument("--seed", type=int, default=1, help="of the split (1)")
    p.add_argument("--longest", type=int, default=20, help="content tokens an item (20)")
    p.add_argument("--width", type=int, default=128, help="dimensions of a content token (128)")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for load, folder in ((kuairand, args.kuairand), (beauty, args.beauty)):
        if folder:
            prepare(load(folder), args.out, args.seed, args.longest, args.width)


if __name__ == "__main__":
    main()
