"""The gate of an exported program: against the float32 model run eagerly, on real users, or nothing is exported.

    report = compare(reference, candidate, beam=128)      # each: (ids [U, W], scores [U, W]), best first
    report["passed"]

The reference is `rank_items`, the road that evaluation takes, not the exported module's own eager form. Two items whose
reference scores differ by no more than float error are tied, and either order is right: an item that the candidate puts
first counts if the reference scores it as its own first, and an item among the candidate's K counts if the reference
scores it no lower than its own K-th. What would have counted without that stands in the report too.

Legend: U users, W beam width, L length of a history.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.program import INPUTS, NOTHING, input_shapes
from models.onerec.ranking import rank_items
from models.training.checkpoint import Tokenizer
from models.training.data import CONTEXT_COLUMNS, PATHWAYS, TARGET_COLUMNS, UserDays

USERS = 1000
TOP1, OVERLAP, TOP_K = 0.999, 0.99, 10
ALONE = 16  # users that a program answers one at a time
TIED = 1e-5  # relative difference of scores: a few float32 steps of a sum of three log-probabilities

Ranked = tuple[np.ndarray, np.ndarray]


def real_users(rows: Path, tokenizer: Tokenizer, config: OneRecConfig, count: int = USERS) -> dict[str, Tensor]:
    """The program's inputs (without `beam`) of up to `count` users of an evaluation set, evenly spread.

    Raises ValueError when it has no rows or its static codes are not those of the model.
    """
    table = pq.read_table(rows, columns=[*CONTEXT_COLUMNS, *TARGET_COLUMNS])
    if not len(table):
        raise ValueError(f"{rows} has no users to compare the exported program on; run the features step again")
    chosen = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int))
    users = UserDays(table.take(chosen), tokenizer.catalogue, config)
    lengths, shapes = [], input_shapes(config)
    tensors = {"static": torch.from_numpy(users.static).int()}
    for name in PATHWAYS:
        longest = shapes[name][0]
        events, mask = users.pathway[name].right_aligned(np.arange(len(users)), longest)
        padded = torch.zeros(len(users), *shapes[name], dtype=torch.int32)
        padded[:, longest - events.shape[1] :] = torch.from_numpy(events)
        tensors[name] = padded
        lengths.append(mask.sum(1))
    return tensors | {"lengths": torch.from_numpy(np.stack(lengths, 1)).int()}


def parts(tensors: dict[str, Tensor], size: int, alone: int = 0) -> Iterator[dict[str, Tensor]]:
    """Batches of `size`, and the last `alone` users (at most half of all) each by themselves."""
    users = tensors["static"].shape[0]
    together = users - min(alone, users // 2)
    bounds = [*range(0, together, size), *range(together, users + 1)]
    for start, end in itertools.pairwise(bounds):
        yield {name: t[start:end] for name, t in tensors.items()}


def reference(model: OneRec, tokenizer: Tokenizer, tensors: dict[str, Tensor], beam: int, size: int = 32) -> Ranked:
    """Ids and scores [U, beam] of `rank_items` in float32; -1 and -inf beyond what it found."""
    ids, found = torch.tensor(tokenizer.catalogue.item_ids), []
    for part in parts(tensors, size):
        batch = {"static": part["static"].long()}
        for i, name in enumerate(PATHWAYS):
            place = torch.arange(part[name].shape[1])
            batch[name] = part[name].long()
            batch[f"{name}_mask"] = place >= part[name].shape[1] - part["lengths"][:, i : i + 1]
        index, score, _ = rank_items(model, batch, tokenizer.trie, beam)
        found.append((torch.where(score.isfinite(), ids[index.clamp_min(0)], NOTHING).numpy(), score.numpy()))
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def answers(run: Callable[..., tuple[Tensor, ...]], tensors: dict[str, Tensor], beam: int, size: int = 32) -> Ranked:
    """Ids and scores of a program that takes its inputs in the order of INPUTS.

    A compiler may take for granted that a batch has two users or more, so some come alone: were those answers wrong,
    the verdict would be.
    """
    found = []
    for part in parts(tensors, size, ALONE):
        part["beam"] = torch.full((part["static"].shape[0],), beam, dtype=torch.int32)
        with torch.no_grad():
            items, scores, _ = run(*(part[name] for name in INPUTS))
        found.append((items.cpu().numpy(), scores.float().cpu().numpy()))
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def compare(wanted: Ranked, got: Ranked, top_k: int = TOP_K) -> dict[str, Any]:
    """Share of users with the right first item, mean share of right items among the first `top_k`, and the verdict."""
    strict1 = right1 = strict_k = right_k = 0.0
    for ids, scores, other in zip(*wanted, got[0]):
        score_of = dict(zip(ids.tolist(), scores.tolist()))
        k = min(top_k, int(np.isfinite(scores).sum()))
        if not k:
            right = float((other == NOTHING).all())
            strict1, right1, strict_k, right_k = strict1 + right, right1 + right, strict_k + right, right_k + right
            continue
        best, last = ids[:k].tolist(), scores[k - 1]
        chosen = [item for item in dict.fromkeys(other[:k].tolist()) if item != NOTHING]  # an item twice counts once
        lowest = -np.inf
        strict1 += bool(chosen) and chosen[0] == best[0]
        right1 += bool(chosen) and score_of.get(chosen[0], lowest) >= scores[0] - TIED * max(1.0, abs(scores[0]))
        strict_k += len(set(chosen) & set(best)) / k
        right_k += sum(score_of.get(item, lowest) >= last - TIED * max(1.0, abs(last)) for item in chosen) / k
    users = len(wanted[0])
    top1, overlap = float(right1) / users, float(right_k) / users
    return {
        "users": users,
        "top_k": top_k,
        "top1": top1,
        "overlap": overlap,
        "top1_without_ties": float(strict1) / users,
        "overlap_without_ties": float(strict_k) / users,
        "passed": top1 >= TOP1 and overlap >= OVERLAP,
    }
