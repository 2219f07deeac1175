"""The daily tokenizer step: fit on the first day, afterwards IDs for new and changed items from the frozen codebooks.

    refresh_tokenizer(items=..., training_sets=[...], previous=release / "tokenizer", out=folder, seed=0)

IDs of unchanged items never move, but for a refit, which happens on request or when drift passes its limit. Drift is
the reconstruction error of the items named since the fit, against that of items held out from the fit. A refit keeps
the labels (matching.py) and leaves a carry for the models (carry.py).
Content, representation and assignment are computed for new and changed items only; what grows with the catalogue is one
scan for changes, and writing the table and the trie.

Writes the files of a tokenizer (state.py), and carry.safetensors if known IDs changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from models.tokenizer import metrics, rq_kmeans
from models.tokenizer.carry import CARRY, Carry
from models.tokenizer.gates import Gates, judge
from models.tokenizer.items_table import read_digests, read_positives, read_rows
from models.tokenizer.matching import align, keep_labels
from models.tokenizer.refresh_report import measure
from models.tokenizer.representation import named_config, represent
from models.tokenizer.sid_table import sid_digest
from models.tokenizer.state import LEVELS, TokenizerState, codebook_size_for, decode, encode, errors
from models.tokenizer.unique import unique_codes

HELD_OUT = 0.05  # share of the items kept out of a fit to measure drift by,
MIN_TO_HOLD = 1000  # but none of a smaller catalogue


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
    before = TokenizerState.load(previous) if previous is not None else None
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
    report = measure(before, tokens, named, items, ids, training_sets if reason else [], out, seed)
    report |= {"refit": reason is not None, "refit_reason": reason, "drift": None if reason else tokens.drift}
    if reason is not None and before is not None:
        report["churn"] = metrics.churn(before.codes, tokens.codes[: len(before.codes)])
    if before is not None and (report["changed_ids"] or len(tokens.books[0]) != len(before.books[0])):
        Carry(sid_digest(before.codes), tuple(source), refit=reason is not None).save(out / CARRY)
    report["gates"] = judge(report, config.gates)
    return report


def _extend(before: TokenizerState, items: Path, ids: np.ndarray, digest: np.ndarray) -> tuple[TokenizerState, dict]:
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
    nearest = encode(vectors, before.books)
    unique = unique_codes(nearest, vectors, before.books, taken)
    codes, contents = before.codes.copy(), before.content.copy()
    codes[at[changed]], contents[at[changed]] = unique[: changed.sum()], digest[changed]
    error = float(np.square(vectors - decode(nearest, before.books)).sum())
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
    before: TokenizerState | None,
    items: Path,
    ids: np.ndarray,
    digest: np.ndarray,
    training_sets: list[Path],
    seed: int,
    config: RefreshConfig,
    work: Path | None,
    progress: Callable[[str], None],
) -> tuple[TokenizerState, dict, list[np.ndarray]]:
    """Representation and codebooks of all items; labels of the day before are kept, and its items keep their places."""
    table = read_rows(items)
    users, liked = read_positives(training_sets, ids)
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
        turn = align(decode(before.codes[here], before.books), vectors[at[here]])
        turned = [b @ turn for b in before.books]
        # From the old centroids, with copies for the codes that are added: those are empty and so are filled anew.
        warm = None if variant == "balanced" else [np.concatenate([b, b[[0] * (size - len(b))]]) for b in turned]
        books, source = keep_labels(_books(vectors[~held], size, seed, variant, warm), turned)
        # Items that left the table keep their place in the catalogue; all that is known of them is their old ID.
        new = ~np.isin(ids, before.ids)
        rows = np.where(here[:, None], vectors[at], decode(before.codes, turned)).astype(np.float32)
        vectors, catalogue = np.concatenate([rows, vectors[new]]), np.concatenate([before.ids, ids[new]])
        digest = np.concatenate([np.where(here, digest[at], before.content), digest[new]])
    nearest = encode(vectors, books)
    unique = unique_codes(nearest, vectors, books)
    held_error = np.zeros(0)
    if held.any():
        held_error = errors(represent(table.filter(pa.array(held)), previous=representation)[1], books)
    fit = {
        "variance": float(np.square(vectors - vectors.mean(0)).sum(1).mean()),
        "held_out_error": float(held_error.mean()) if len(held_error) else 0.0,
        "items_since": 0,
        "error_since": 0.0,
    }
    tokens = TokenizerState(
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
