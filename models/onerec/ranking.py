"""From a context to ranked items: constrained beam, joined by the item-level score where the model has one.

Evaluation and serving share it.

    for item, score, codes in rank_unseen(model, batch, trie, seen, k=10, width=64): ...

Legend: B users, W beam width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.onerec.beam_search import beam_search, beam_search_lists
from models.onerec.model import OneRec
from models.tokenizer.trie import Trie

MAX_BEAM = 512
ITEM_SCORE_WEIGHT = 1.0  # measured on KuaiRand, docs/decisions/model.md


@torch.no_grad()
def rank_items(model: OneRec, batch: dict[str, Tensor], trie: Trie, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The beam's legal items of each user by beam log-probability + item log-probability (if any), best first.

    Returns catalogue indices [B, W], scores [B, W] (-inf where the beam found no legal tuple) and codes [B, W, 3].
    """
    z, mask = model.encode(batch)
    codes, logp = beam_search(model, z, mask, min(width, len(trie.item)), trie)
    item = trie.lookup(codes)
    if model.config.item_head:
        item_logp = torch.log_softmax(model.item_logits(z).float(), -1).gather(1, item.clamp_min(0))
        logp = logp + ITEM_SCORE_WEIGHT * item_logp
    score = torch.where(item >= 0, logp, float("-inf"))
    score, order = score.sort(dim=1, descending=True, stable=True)
    return item.gather(1, order), score, codes.gather(1, order[..., None].expand_as(codes))


def rank_unseen(
    model: OneRec,
    batch: dict[str, Tensor],
    trie: Trie,
    unwanted: list[np.ndarray],
    k: int,
    width: int,
    keep_all: bool = False,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Up to k items of each user, best first: catalogue indices [n], scores [n] and codes [n, 3].

    `unwanted` holds catalogue indices that a user must not get. Users whom they leave fewer than k items are ranked
    again with a beam four times as wide, up to MAX_BEAM or the catalogue. `keep_all` returns everything else the beam
    found too, not only the first k.
    """
    empty = np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 3), np.int64)
    found = [empty] * len(unwanted)
    limit = min(MAX_BEAM, len(trie.item))
    width = min(width, limit)
    beams, rows = width * len(unwanted), np.arange(len(unwanted))
    while len(rows):
        size = max(1, beams // width)  # a wider beam takes fewer users at a time: memory stays what it was
        for part in (rows[i : i + size] for i in range(0, len(rows), size)):
            ranked = rank_items(model, {name: t[part] for name, t in batch.items()}, trie, width)
            for row, item, score, codes in zip(part, *(t.cpu().numpy() for t in ranked)):
                first = np.flatnonzero(np.isfinite(score) & ~np.isin(item, unwanted[row]))[: None if keep_all else k]
                found[row] = item[first], score[first], codes[first]
        if width == limit:
            break
        rows = rows[[len(found[row][0]) < k for row in rows]]
        width = min(4 * width, limit)
    return found


@torch.no_grad()
def rank_lists(
    model: OneRec, batch: dict[str, Tensor], trie: Trie, unwanted: list[np.ndarray], items: int, width: int
) -> list[tuple[np.ndarray, float]]:
    """The most probable list of `items` items of each user (session-wise models): catalogue indices [m] in their order,
    and the list's log-probability.

    `unwanted` is as in `rank_unseen`. A user whom it leaves no such list within the beam gets an empty one and -inf.
    """
    z, mask = model.encode(batch)
    skip_BN = torch.zeros(len(unwanted), len(trie.item), dtype=torch.bool, device=z.device)
    for user, indices in enumerate(unwanted):
        known = indices[indices < len(trie.item)]  # the unknown item's index lies behind the catalogue
        skip_BN[user, torch.from_numpy(known).to(z.device)] = True
    codes, logp = beam_search_lists(model, z, mask, width, trie, items, skip_BN)
    best = trie.lookup(codes[:, 0]).cpu().numpy()
    first = logp[:, 0].tolist()
    return [(best[i] if np.isfinite(p) else best[i][:0], p) for i, p in enumerate(first)]
