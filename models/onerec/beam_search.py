"""Beam search over code tuples: the context is encoded once, all beams share its keys and values.

With a trie only legal continuations are considered, so every result maps to an item; without one the search is free
and is used to measure legality. Scores are log-probabilities summed over the levels.

Legend: B users, W beam width, L=3 levels, K codebook size, C largest number of children.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.onerec.model import OneRec
from models.tokenizer.trie import Trie

ILLEGAL = float("-inf")


@torch.no_grad()
def beam_search(model: OneRec, z_BTD: Tensor, mask_BT: Tensor, width: int, trie: Trie | None) -> tuple[Tensor, Tensor]:
    """The `width` best code tuples of each user, best first.

    Returns codes [B, W, 3] and log-probabilities [B, W]. With a trie and fewer than W items, the surplus beams have
    probability -inf and must be ignored; so has every illegal tuple.
    """
    kv = model.context_kv(z_BTD)
    B = len(z_BTD)
    prefix = torch.zeros(B, 1, 0, dtype=torch.int64, device=z_BTD.device)
    logp = torch.zeros(B, 1, device=z_BTD.device)
    node = torch.zeros(B, 1, dtype=torch.int64, device=z_BTD.device)
    cache = None
    for level in range(model.config.levels):
        hidden, cache = model.decode_step(prefix[..., -1] if level else None, level, cache, kv, mask_BT)
        step = torch.log_softmax(model.level_logits(hidden, level).float(), -1)
        if trie is None:
            code = torch.arange(step.shape[-1], device=step.device).expand(step.shape)
            child = code
        else:
            code, child, real = trie.children(node, level)
            step = step.gather(2, code).masked_fill(~real, ILLEGAL)
        total = (logp[..., None] + step).flatten(1)
        logp, best = total.topk(min(width, total.shape[1]), dim=1)
        beam = best // code.shape[-1]
        cache = [(_follow(k, beam), _follow(v, beam)) for k, v in cache]
        prefix = torch.cat(
            [prefix.gather(1, beam[..., None].expand(-1, -1, level)), code.flatten(1).gather(1, best)[..., None]], -1
        )
        node = child.flatten(1).gather(1, best)
    return prefix, logp


def _follow(cache_BMHPd: Tensor, beam_BW: Tensor) -> Tensor:
    """The cache rows of the beams that were kept."""
    return cache_BMHPd.gather(1, beam_BW[..., None, None, None].expand(-1, -1, *cache_BMHPd.shape[2:]))


@torch.no_grad()
def sample_codes(
    model: OneRec,
    z_BTD: Tensor,
    mask_BT: Tensor,
    count: int,
    generator: torch.Generator,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """`count` unconstrained samples of each user from the policy, [B, count, 3].

    At each level only the `top_k` most probable codes (0: all) and the smallest set that holds `top_p` are drawn from.
    """
    kv = model.context_kv(z_BTD)
    prefix = torch.zeros(len(z_BTD), count, 0, dtype=torch.int64, device=z_BTD.device)
    for level in range(model.config.levels):
        hidden = model.decode(prefix if level else prefix[:, :1], kv, mask_BT)[:, :, -1]
        p = _truncated(torch.softmax(model.level_logits(hidden, level).float(), -1), top_k, top_p)
        p = p.expand(-1, count, -1)
        code = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(*p.shape[:2], 1)
        prefix = torch.cat([prefix, code], -1)
    return prefix


def _truncated(p: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities with all but the most probable codes set to zero; they need not sum to one."""
    if not top_k and top_p >= 1:
        return p
    ordered, code = p.sort(dim=-1, descending=True)
    keep = ordered.cumsum(-1) - ordered < top_p
    if top_k:
        keep[..., top_k:] = False
    return torch.zeros_like(p).scatter(-1, code, torch.where(keep, ordered, 0.0))
