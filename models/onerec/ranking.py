"""From a context to ranked items: constrained beam, joined with the item-level score. Evaluation and serving share it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.onerec.beam_search import beam_search
from models.onerec.model import OneRec
from models.tokenizer.trie import Trie

ITEM_SCORE_WEIGHT = 1.0  # measured on KuaiRand, docs/decisions.md


@torch.no_grad()
def rank_items(model: OneRec, batch: dict[str, Tensor], trie: Trie, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The beam's legal items of each user by beam log-probability + item log-probability, best first.

    Returns catalogue indices [B, W], scores [B, W] (-inf where the beam found no legal tuple) and codes [B, W, 3].
    """
    z, mask = model.encode(batch)
    codes, logp = beam_search(model, z, mask, min(width, len(trie.item)), trie)
    item = trie.lookup(codes)
    item_logp = torch.log_softmax(model.item_logits(z).float(), -1).gather(1, item.clamp_min(0))
    score = torch.where(item >= 0, logp + ITEM_SCORE_WEIGHT * item_logp, float("-inf"))
    score, order = score.sort(dim=1, descending=True, stable=True)
    return item.gather(1, order), score, codes.gather(1, order[..., None].expand_as(codes))
