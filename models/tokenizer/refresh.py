"""The daily tokenizer step: fit on the first day, afterwards give IDs to new items from the frozen codebooks.

IDs of known items never change. Writes tokenizer.json, codebooks.safetensors (with the frozen representation),
sid_table.parquet (item_id, c0, c1, c2 in catalogue order, new items appended) and trie.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file

from models.onerec.features import POSITIVE_MASK
from models.tokenizer import metrics, rq_kmeans
from models.tokenizer.representation import named_config, represent
from models.tokenizer.trie import Trie
from models.tokenizer.unique import unique_codes

LEVELS = 3
MIN_CODEBOOK, MAX_CODEBOOK = 16, 8192


def codebook_size_for(items: int) -> int:
    """Power of two whose square is at least the catalogue: two levels nearly tell items apart. 8192 as published."""
    size = MIN_CODEBOOK
    while size * size < items and size < MAX_CODEBOOK:
        size *= 2
    return size


def refresh_tokenizer(
    *,
    items: Path,
    training_sets: list[Path],
    previous: Path | None,
    out: Path,
    seed: int,
    representation: str = "svd",
    progress: Callable[[str], None] = print,
) -> dict:
    """Fit (previous is None) or extend the tokenizer of the day before; returns the metrics for the report.

    representation: the kind that a fit learns (`named_config`); a later day keeps the kind it finds.
    Among them `collision_rate_before`: share of the NEW items whose nearest tuple is taken by a known item or shared
    with another new one; `reconstruction_loss` of the new items, None on a day without any (known items got their IDs
    from other vectors); `changed_ids`: known items whose row of the written table is not that of the day before.
    """
    table = pq.read_table(items).sort_by("item_id")
    ids = table["item_id"].to_numpy()
    if not len(ids):
        raise ValueError(f"{items} holds no items: the tokenizer has nothing to name; check the ingest of this day")
    tags = [t or [] for t in table["tags"].to_pylist()]
    texts = [" ".join(filter(None, parts)) for parts in zip(*(_text(table, c) for c in ("caption", "asr", "ocr")))]
    if previous is None:
        progress(f"fitting codebooks on {len(ids):,} items")
        size = codebook_size_for(len(ids))
        users, liked = _positives(training_sets, ids)
        tensors, vectors = represent(
            table,
            config=named_config(representation),
            users=users,
            liked=liked,
            seed=seed,
            progress=progress,
        )
        books = [b.numpy() for b in rq_kmeans.fit(torch.from_numpy(vectors), LEVELS, size, seed)]
        old = pa.table(
            {"item_id": pa.array([], pa.int64()), **{f"c{i}": pa.array([], pa.int32()) for i in range(LEVELS)}}
        )
    else:
        tensors = load_file(previous / "codebooks.safetensors")
        books = [tensors.pop(f"codebook_{i}") for i in range(LEVELS)]
        size = len(books[0])
        old = pq.read_table(previous / "sid_table.parquet")
        _, vectors = represent(table, previous=tensors, progress=progress)
    new = np.flatnonzero(~np.isin(ids, old["item_id"].to_numpy()))
    progress(f"{len(new):,} new items of {len(ids):,}")
    taken = np.stack([old[f"c{i}"].to_numpy() for i in range(LEVELS)], 1).astype(np.int64)
    nearest = rq_kmeans.encode(torch.from_numpy(vectors[new]), [torch.from_numpy(b) for b in books]).numpy()
    unique = unique_codes(nearest, vectors[new], books, taken)
    sid_NL = np.concatenate([taken, unique])
    order = np.concatenate([old["item_id"].to_numpy(), ids[new]])
    columns = {f"c{i}": pa.array(sid_NL[:, i], pa.int32()) for i in range(LEVELS)}
    pq.write_table(pa.table({"item_id": pa.array(order, pa.int64()), **columns}), out / "sid_table.parquet")
    save_file({**{f"codebook_{i}": b for i, b in enumerate(books)}, **tensors}, out / "codebooks.safetensors")
    Trie.build(sid_NL, size).save(out / "trie.safetensors")
    position = {int(i): row for row, i in enumerate(ids)}
    present = np.array([position.get(int(i), -1) for i in order])
    shown = present >= 0
    rebuilt = rq_kmeans.decode(torch.from_numpy(unique), [torch.from_numpy(b) for b in books]).numpy()
    report = {
        "items": len(order),
        "new_items": len(new),
        "changed_ids": metrics.changed_ids(_names(old), _names(pq.read_table(out / "sid_table.parquet"))),
        "refit": previous is None,
        "levels": LEVELS,
        "codebook_size": size,
        **metrics.level_metrics(sid_NL, size),
        "reconstruction_loss": metrics.reconstruction_loss(vectors[new], rebuilt, vectors),
        "collision_rate_before": metrics.collision_rate(nearest, taken),
        "collision_rate_after": metrics.collision_rate(sid_NL),
        "code_tree": metrics.code_tree(
            sid_NL[shown], [tags[i] for i in present[shown]], [texts[i] for i in present[shown]]
        ),
    }
    (out / "tokenizer.json").write_text(
        json.dumps({"levels": LEVELS, "codebook_size": size, "items": len(order), "seed": seed}, indent=1) + "\n"
    )
    return report


def _names(sid_table: pa.Table) -> dict[int, tuple[int, ...]]:
    """Item id -> its code tuple."""
    codes = zip(*(sid_table[f"c{i}"].to_pylist() for i in range(LEVELS)))
    return dict(zip(sid_table["item_id"].to_pylist(), codes))


def _text(table: pa.Table, column: str) -> list:
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)


def _positives(training_sets: list[Path], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(user, row of `ids`) of every positive impression in the training sets."""
    users, liked = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for path in training_sets:
        t = pq.read_table(path, columns=["user_id", "item_id", "label"])
        lists = t["item_id"].combine_chunks()
        user = np.repeat(t["user_id"].to_numpy(), lists.value_lengths().to_numpy())
        positive = (t["label"].combine_chunks().flatten().to_numpy() & POSITIVE_MASK) > 0
        users.append(user[positive])
        liked.append(lists.flatten().to_numpy()[positive])
    user, item = np.concatenate(users), np.concatenate(liked)
    row = np.minimum(np.searchsorted(ids, item), len(ids) - 1)
    known = ids[row] == item
    return user[known], row[known]
