"""Beam search over code tuples: the context is encoded once, all beams share its keys and values.

With a trie only legal continuations are considered, so every result maps to an item; without one the search is free
and is used to measure legality. Scores are log-probabilities summed over the levels.

    codes, logp = beam_search(model, z, mask, width=128, trie=trie)                    # items
    lists, logp = beam_search_lists(model, z, mask, width=128, trie=trie, items=5)     # lists of a session-wise model

Legend: B users, W beam width, L=3 levels, m items a list, K codebook size, C largest number of children.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.onerec.layers import Cache
from models.onerec.model import OneRec
from models.tokenizer.trie import Trie

ILLEGAL = float("-inf")
NOWHERE = -1  # no leaf of the trie


@torch.no_grad()
def beam_search(
    model: OneRec, z_BTD: Tensor, mask_BT: Tensor | None, width: int, trie: Trie | None
) -> tuple[Tensor, Tensor]:
    """The `width` best code tuples of each user, best first.

    Returns codes [B, W, 3] and log-probabilities [B, W]. With a trie and fewer than W items, the surplus beams have
    probability -inf and must be ignored; so has every illegal tuple. A session-wise model gives its lists' first items.
    """
    return _search(model, z_BTD, mask_BT, width, trie, 1, None)


@torch.no_grad()
def beam_search_lists(
    model: OneRec,
    z_BTD: Tensor,
    mask_BT: Tensor | None,
    width: int,
    trie: Trie,
    items: int,
    unwanted_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The `width` best lists of `items` legal items, item after item, no item twice in a list, best first.

    `unwanted_BN` is True where a user must not get the item of that catalogue index. Returns codes [B, W, m, 3] and
    log-probabilities of the lists [B, W], -inf for surplus beams. Raises ValueError when the model was not built for
    lists of that length.
    """
    if not 1 <= items <= model.config.session_items:
        raise ValueError(
            f"a list of {items} items was asked for, the model generates up to {model.config.session_items}; "
            "train one with more session_items"
        )
    unwanted = None if unwanted_BN is None else unwanted_BN[:, trie.item]
    flat, logp = _search(model, z_BTD, mask_BT, width, trie, items, unwanted)
    return flat.unflatten(-1, (items, model.config.levels)), logp


def _search(
    model: OneRec,
    z_BTD: Tensor,
    mask_BT: Tensor | None,
    width: int,
    trie: Trie | None,
    items: int,
    unwanted_BN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Codes [B, W, items * 3] and log-probabilities. `unwanted_BN` is in the order of the trie's leaves."""
    kv = model.context_kv(z_BTD)
    B, L, device = len(z_BTD), model.config.levels, z_BTD.device
    prefix = torch.zeros(B, 1, 0, dtype=torch.int64, device=device)
    used = torch.full((B, 1, 0), NOWHERE, device=device)  # leaves of the list so far
    logp = torch.zeros(B, 1, device=device)
    node = torch.zeros(B, 1, dtype=torch.int64, device=device)
    cache = None
    for step in range(items * L):
        level, place = step % L, step + step // L
        if level == 0:
            if step:  # the last code of the item before, then BOS
                _, cache = model.decode_step(prefix[..., -1], place - 1, cache, kv, mask_BT)
            hidden, cache = model.decode_step(None, place, cache, kv, mask_BT)
        else:
            hidden, cache = model.decode_step(prefix[..., -1], place, cache, kv, mask_BT)
        score = torch.log_softmax(model.level_logits(hidden, level).float(), -1)
        if trie is None:
            code = torch.arange(score.shape[-1], device=device).expand(score.shape)
            child = code
        else:
            code, child, real = trie.children(node, level)
            if level == L - 1:
                for i in range(used.shape[-1]):
                    real = real & (child != used[..., i : i + 1])
                if unwanted_BN is not None:
                    real = real & ~unwanted_BN.gather(1, child.flatten(1)).view(child.shape)
            score = score.gather(2, code).masked_fill(~real, ILLEGAL)
        total = (logp[..., None] + score).flatten(1)
        logp, best = total.topk(min(width, total.shape[1]), dim=1)
        beam = best // code.shape[-1]
        cache = follow_cache(cache, beam)
        prefix = torch.cat([_follow(prefix, beam), code.flatten(1).gather(1, best)[..., None]], -1)
        used = _follow(used, beam)
        node = child.flatten(1).gather(1, best)
        if level == L - 1:
            used, node = torch.cat([used, node[..., None]], -1), torch.zeros_like(node)
    return prefix, logp


def follow_cache(cache: list[Cache], beam_BW: Tensor) -> list[Cache]:
    """The keys and values of the kept beams; what all beams of a user share stays one row."""
    return [[(k, v) if k.shape[1] == 1 else (_follow(k, beam_BW), _follow(v, beam_BW)) for k, v in c] for c in cache]


def _follow(x_BM: Tensor, beam_BW: Tensor) -> Tensor:
    """The rows of the beams that were kept: [B, M, ...] -> [B, W, ...]."""
    index = beam_BW.view(*beam_BW.shape, *[1] * (x_BM.ndim - 2))
    return x_BM.gather(1, index.expand(-1, -1, *x_BM.shape[2:]))


@torch.no_grad()
def sample_codes(
    model: OneRec,
    z_BTD: Tensor,
    mask_BT: Tensor | None,
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
