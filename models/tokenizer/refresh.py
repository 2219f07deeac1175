"""The daily tokenizer step: fit on the first day, afterwards IDs for new and changed items from the frozen codebooks.

    refresh_tokenizer(items=..., training_sets=[...], previous=release / "tokenizer", out=folder, seed=0)

IDs of unchanged items never move, but for a refit, which happens on request or when drift passes its limit. Drift is
the reconstruction error of the items named since the fit, against that of items held out from the fit. A refit keeps
the labels (matching.py) and leaves a carry for the models (carry.py).
Content, representation and assignment are computed for new and changed items only; what grows with the catalogue is one
scan for changes, and writing the table and the trie.

Writes tokenizer.json, codebooks.safetensors (with the frozen representation), sid_table.parquet (item_id, c0, c1, c2,
content digest; in catalogue order, new items appended), trie.safetensors, and carry.safetensors if known IDs changed.
"""

from __future__ import annotations

import dataclasses
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
from models.tokenizer.carry import CARRY, Carry
from models.tokenizer.gates import Gates, judge
from models.tokenizer.items_table import content_of, read_digests, read_rows
from models.tokenizer.matching import align, keep_labels
from models.tokenizer.representation import named_config, represent
from models.tokenizer.trie import Trie
from models.tokenizer.unique import unique_codes
from models.training.checkpoint import LEVEL_COLUMNS, sid_digest

LEVELS = len(LEVEL_COLUMNS)
MIN_CODEBOOK, MAX_CODEBOOK = 16, 8192
HELD_OUT = 0.05  # share of the items kept out of a fit to measure drift by,
MIN_TO_HOLD = 1000  # but none of a smaller catalogue
SHOWN = 20_000  # items that the code tree and the neighbour quality look at


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """`drift_limit`: times the error of held-out items; judged from `drift_items` items since the fit on.

    `variant` of K-means: plain or balanced. `gates`: judged here, required by the step that releases.
    `representation`: the kind that a fit learns (representation.named_config); a later day keeps the kind it finds.
    """

    drift_limit: float = 1.5
    drift_items: int = 200
    variant: str = "plain"
    representation: str = "svd"
    gates: Gates = dataclasses.field(default_factory=Gates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """A tokenizer in memory. `codes` [N, 3] of `ids`, with the digest of the content they were made from; `fit`: what
    tokenizer.json keeps of the fit and of the errors since."""

    books: list[np.ndarray]
    representation: dict[str, np.ndarray]
    ids: np.ndarray
    codes: np.ndarray
    content: np.ndarray
    fit: dict[str, float]

    @classmethod
    def load(cls, directory: Path) -> Tokens:
        tensors = load_file(directory / "codebooks.safetensors")
        books = [tensors.pop(f"codebook_{i}") for i in range(LEVELS)]
        table = pq.read_table(directory / "sid_table.parquet")
        if "content" not in table.column_names:
            raise ValueError(
                f"{directory} is a tokenizer of an earlier layout, without digests of the items' content; bootstrap the"
                " first day after the upgrade in an empty workspace"
            )
        return cls(
            books=books,
            representation=tensors,
            ids=table["item_id"].to_numpy(),
            codes=np.stack([table[c].to_numpy() for c in LEVEL_COLUMNS], 1).astype(np.int64),
            content=table["content"].to_numpy(),
            fit=json.loads((directory / "tokenizer.json").read_text())["fit"],
        )

    def save(self, out: Path, seed: int) -> None:
        size = len(self.books[0])
        columns = {c: pa.array(self.codes[:, i], pa.int32()) for i, c in enumerate(LEVEL_COLUMNS)}
        columns |= {"content": pa.array(self.content, pa.uint64())}
        pq.write_table(pa.table({"item_id": pa.array(self.ids, pa.int64()), **columns}), out / "sid_table.parquet")
        books = {f"codebook_{i}": np.ascontiguousarray(b) for i, b in enumerate(self.books)}
        save_file({**books, **self.representation}, out / "codebooks.safetensors")
        Trie.build(self.codes, size).save(out / "trie.safetensors")
        about = {"levels": LEVELS, "codebook_size": size, "items": len(self.ids), "seed": seed, "fit": self.fit}
        (out / "tokenizer.json").write_text(json.dumps(about, indent=1) + "\n")

    @property
    def drift(self) -> float | None:
        """Error of the items since the fit over that of held-out ones; None while either is unknown."""
        f = self.fit
        if not f["held_out_error"] or not f["items_since"]:
            return None
        return f["error_since"] / f["items_since"] / f["held_out_error"]


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
    refit: bool = False,
    config: RefreshConfig = RefreshConfig(),
    work: Path | None = None,
    progress: Callable[[str], None] = print,
) -> dict:
    """Fit (previous is None), extend, or refit the tokenizer of the day before; returns the metrics for the report.

    training_sets: every day so far; read only for a fit. work: a folder that outlives a killed run, where the alignment
    of an "aligned" fit goes on. Among the metrics: `named_items` that got their ID today, new
    or changed, or all at a fit; `collision_rate_before`: share of them whose nearest tuple is taken or shared;
    `reconstruction_loss` of them, None without any; `changed_ids`: known items with another ID than the day before;
    `moved_ids`: those among them that had not changed themselves, outside a refit; `gates`: see gates.py.
    """
    ids, digest = read_digests(items)
    before = Tokens.load(previous) if previous is not None else None
    reason = None if before is not None else "first day"
    if before is not None:
        tokens, named = _extend(before, items, ids, digest)
        progress(f"{len(tokens.ids) - len(before.ids):,} new and {named['changed']:,} changed items of {len(ids):,}")
        drift = tokens.drift
        if refit:
            reason = "requested"
        elif drift is not None and drift > config.drift_limit and tokens.fit["items_since"] >= config.drift_items:
            reason = f"drift {drift:.2f} passed {config.drift_limit:g}"
    source: list[np.ndarray] = [np.arange(len(b)) for b in before.books] if before is not None else []
    if reason is not None:
        progress(f"fitting codebooks on {len(ids):,} items ({reason})")
        tokens, named, source = _fit(before, items, ids, digest, training_sets, seed, config, work, progress)
    tokens.save(out, seed)
    report = _measure(before, tokens, named, items, ids, training_sets if reason else [], out, seed)
    report |= {"refit": reason is not None, "refit_reason": reason, "drift": None if reason else tokens.drift}
    if reason is not None and before is not None:
        report["churn"] = metrics.churn(before.codes, tokens.codes[: len(before.codes)])
    if before is not None and (report["changed_ids"] or len(tokens.books[0]) != len(before.books[0])):
        Carry(sid_digest(before.codes), tuple(source)).save(out / CARRY)
    report["gates"] = judge(report, config.gates)
    return report


def _encode(vectors: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    return rq_kmeans.encode(torch.from_numpy(vectors), [torch.from_numpy(b) for b in books]).numpy()


def _decode(codes: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    return np.sum([b[codes[:, i]] for i, b in enumerate(books)], axis=0)


def _errors(vectors: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    """Squared error of each vector under its nearest codes."""
    return np.square(vectors - _decode(_encode(vectors, books), books)).sum(1)


def _extend(before: Tokens, items: Path, ids: np.ndarray, digest: np.ndarray) -> tuple[Tokens, dict]:
    """Names for what is new or changed; nothing else is read, represented or assigned."""
    order = np.argsort(before.ids, kind="stable")
    at = order[np.minimum(np.searchsorted(before.ids[order], ids), len(order) - 1)]
    known = before.ids[at] == ids
    changed = known & (before.content[at] != digest)
    work = np.concatenate([np.flatnonzero(changed), np.flatnonzero(~known)])
    rows = read_rows(items, ids[work])
    back = np.searchsorted(rows["item_id"].to_numpy(), ids[work])
    vectors = represent(rows, previous=before.representation)[1][back]
    stays = np.ones(len(before.ids), bool)
    stays[at[changed]] = False
    taken = before.codes[stays]
    nearest = _encode(vectors, before.books)
    unique = unique_codes(nearest, vectors, before.books, taken)
    codes, contents = before.codes.copy(), before.content.copy()
    codes[at[changed]], contents[at[changed]] = unique[: changed.sum()], digest[changed]
    error = float(np.square(vectors - _decode(nearest, before.books)).sum())
    fit = before.fit | {
        "items_since": before.fit["items_since"] + len(work),
        "error_since": before.fit["error_since"] + error,
    }
    tokens = dataclasses.replace(
        before,
        ids=np.concatenate([before.ids, ids[~known]]),
        codes=np.concatenate([codes, unique[changed.sum() :]]),
        content=np.concatenate([contents, digest[~known]]),
        fit=fit,
    )
    named = {"changed": int(changed.sum()), "nearest": nearest, "vectors": vectors, "unique": unique, "taken": taken}
    return tokens, named | {"moved": ~stays}


def _fit(
    before: Tokens | None,
    items: Path,
    ids: np.ndarray,
    digest: np.ndarray,
    training_sets: list[Path],
    seed: int,
    config: RefreshConfig,
    work: Path | None,
    progress: Callable[[str], None],
) -> tuple[Tokens, dict, list[np.ndarray]]:
    """Representation and codebooks of all items; labels of the day before are kept, and its items keep their places."""
    table = read_rows(items)
    users, liked = _positives(training_sets, ids)
    variant = config.variant
    representation, vectors = represent(
        table,
        config=named_config(config.representation),
        users=users,
        liked=liked,
        seed=seed,
        folder=work,
        progress=progress,
    )
    size = max(codebook_size_for(len(ids)), len(before.books[0]) if before is not None else 0)
    held = np.random.default_rng(seed).random(len(ids)) < (HELD_OUT if len(ids) >= MIN_TO_HOLD else 0)
    source: list[np.ndarray] = []
    catalogue = ids
    if before is None:
        books = _books(vectors[~held], size, seed, variant)
    else:
        at = np.minimum(np.searchsorted(ids, before.ids), len(ids) - 1)
        here = ids[at] == before.ids
        turn = align(_decode(before.codes[here], before.books), vectors[at[here]])
        turned = [b @ turn for b in before.books]
        # From the old centroids, with copies for the codes that are added: those are empty and so are filled anew.
        warm = None if variant == "balanced" else [np.concatenate([b, b[[0] * (size - len(b))]]) for b in turned]
        books, source = keep_labels(_books(vectors[~held], size, seed, variant, warm), turned)
        # Items that left the table keep their place in the catalogue; all that is known of them is their old ID.
        new = ~np.isin(ids, before.ids)
        rows = np.where(here[:, None], vectors[at], _decode(before.codes, turned)).astype(np.float32)
        vectors, catalogue = np.concatenate([rows, vectors[new]]), np.concatenate([before.ids, ids[new]])
        digest = np.concatenate([np.where(here, digest[at], before.content), digest[new]])
    nearest = _encode(vectors, books)
    unique = unique_codes(nearest, vectors, books)
    held_error = np.zeros(0)
    if held.any():
        held_error = _errors(represent(table.filter(pa.array(held)), previous=representation)[1], books)
    fit = {
        "variance": float(np.square(vectors - vectors.mean(0)).sum(1).mean()),
        "held_out_error": float(held_error.mean()) if len(held_error) else 0.0,
        "items_since": 0,
        "error_since": 0.0,
    }
    tokens = Tokens(
        books=books, representation=representation, ids=catalogue, codes=unique, content=digest, fit=fit
    )  # fmt: skip
    named = {"changed": 0, "nearest": nearest, "vectors": vectors, "unique": unique, "taken": None, "moved": None}
    return tokens, named, source


def _books(
    vectors: np.ndarray, size: int, seed: int, variant: str, warm: list[np.ndarray] | None = None
) -> list[np.ndarray]:
    initial = None if warm is None else [torch.from_numpy(b) for b in warm]
    books = rq_kmeans.fit(torch.from_numpy(vectors), LEVELS, size, seed, variant=variant, initial=initial)
    return [b.numpy() for b in books]


def _measure(
    before: Tokens | None,
    tokens: Tokens,
    named: dict,
    items: Path,
    ids: np.ndarray,
    training_sets: list[Path],
    out: Path,
    seed: int,
) -> dict:
    """The report; what changed is read from the table as it was written."""
    size, written = len(tokens.books[0]), pq.read_table(out / "sid_table.parquet")
    now = written["item_id"].to_numpy(), np.stack([written[c].to_numpy() for c in LEVEL_COLUMNS], 1)
    changed = moved = 0
    if before is not None:
        changed = metrics.changed_ids(before.ids, before.codes, *now)
        if named["moved"] is not None:
            stays = ~named["moved"]
            moved = metrics.changed_ids(before.ids[stays], before.codes[stays], *now)
    shown = np.sort(np.random.default_rng(seed).permutation(ids)[:SHOWN])
    content = content_of(read_rows(items, shown if len(shown) < len(ids) else None))
    order = np.argsort(tokens.ids, kind="stable")
    codes = tokens.codes[order[np.searchsorted(tokens.ids[order], content.ids)]]
    users, liked = _positives(training_sets, content.ids)
    rebuilt = _decode(named["unique"], tokens.books)
    return {
        "items": len(tokens.ids),
        "new_items": len(tokens.ids) - (len(before.ids) if before is not None else 0),
        "changed_items": named["changed"],
        "named_items": len(named["unique"]),
        "changed_ids": changed,
        "moved_ids": moved,
        "levels": LEVELS,
        "codebook_size": size,
        **metrics.level_metrics(tokens.codes, size),
        "reconstruction_loss": metrics.reconstruction_loss(named["vectors"], rebuilt, tokens.fit["variance"]),
        "collision_rate_before": metrics.collision_rate(named["nearest"], named["taken"]),
        "collision_rate_after": metrics.collision_rate(tokens.codes),
        "neighbours": metrics.neighbour_quality(codes, content.tags, users, liked, seed),
        "code_tree": metrics.code_tree(codes, content.tags, content.texts),
    }


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
