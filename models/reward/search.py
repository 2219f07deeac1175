"""SIM's two search units (arXiv 2006.05639): the general one picks, the exact one attends with time gaps.

    history = long_history(batch)                                    # positive + lifelong, newest first
    chosen = hard_search(category_BM, category_BS, history.mask_BS, k)
    interest = ExactSearch(...)(item_BMD, z_BSZ, chosen)

The choice is a mask over the history, not a gather of K events a candidate: a softmax over the mask equals one over the
gathered events, and all candidates of a user share keys and values. Legend: B users, M candidates, S events, H heads.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

GAP = 3  # field of an encoded event: log2 bucket of its age, 0 = clock unknown


@dataclasses.dataclass(frozen=True)
class History:
    """Events [B, S, 7], newest first, and which of them are real [B, S]."""

    events: Tensor
    mask: Tensor


def long_history(batch: dict[str, Tensor]) -> History:
    """The positive and the lifelong pathway as one history, newest first; events without a clock are the oldest.

    Within one age bucket, and without a clock, a pathway's own order decides.
    """
    events = torch.cat([batch["positive"], batch["lifelong"]], 1).flip(1)
    mask = torch.cat([batch["positive_mask"], batch["lifelong_mask"]], 1).flip(1)
    gap = events[..., GAP]
    latest = torch.iinfo(gap.dtype).max
    age = torch.where(gap > 0, gap, latest - 1).masked_fill(~mask, latest)
    order = age.argsort(dim=1, stable=True)
    return History(events.gather(1, order[..., None].expand_as(events)), mask.gather(1, order))


def hard_search(category_BM: Tensor, category_BS: Tensor, mask_BS: Tensor, k: int) -> Tensor:
    """The newest `k` events of the candidate's category, as a mask [B, M, S]; the history must be newest first.

    Category 0 is unknown and equals nothing, so that a candidate without a category finds no event.
    """
    same = (category_BM[:, :, None] == category_BS[:, None]) & mask_BS[:, None] & (category_BM > 0)[..., None]
    return same & (same.cumsum(2) <= k)


def top_relevant(relevance_BMS: Tensor, mask_BS: Tensor, k: int) -> Tensor:
    """The `k` events of the highest relevance, as a mask [B, M, S]; fewer where a user has fewer."""
    mask = mask_BS[:, None].expand_as(relevance_BMS)
    if relevance_BMS.shape[2] <= k:
        return mask
    best = relevance_BMS.detach().masked_fill(~mask, -torch.inf).topk(k, 2).indices
    return torch.zeros_like(mask).scatter(2, best, True) & mask


class SoftSearch(nn.Module):
    """Relevance r = (W_b e_event) . (W_a e_candidate), learned by a click task of its own on the r-weighted history."""

    def __init__(self, item_dim: int, dim: int) -> None:
        super().__init__()
        self.of_candidate, self.of_event = nn.Linear(item_dim, dim, bias=False), nn.Linear(item_dim, dim, bias=False)
        self.click = nn.Sequential(nn.Linear(2 * item_dim, dim), nn.LeakyReLU(), nn.Linear(dim, 1))

    def forward(self, item_BMD: Tensor, event_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance [B, M, S], and the click logit [B, M] whose BCE is the auxiliary loss.

        SIM sums r * e over the whole history; the mean keeps the logit's scale from growing with its length.
        """
        key = self.of_event(event_BSD) * mask_BS[..., None]
        relevance = self.of_candidate(item_BMD) @ key.transpose(1, 2) * key.shape[2] ** -0.5
        events = mask_BS.sum(1).clamp_min(1)[:, None, None]
        pooled = relevance @ event_BSD / events  # masked events have relevance 0
        return relevance, self.click(torch.cat([pooled, item_BMD], -1))[..., 0]


class ExactSearch(nn.Module):
    """Multi-head target attention: softmax((W_b z) . (W_a e)), its weights times z itself, heads side by side."""

    def __init__(self, item_dim: int, event_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.width = heads, heads * event_dim
        self.query, self.key = nn.Linear(item_dim, heads * head_dim), nn.Linear(event_dim, heads * head_dim)

    def forward(self, item_BMD: Tensor, z_BSZ: Tensor, chosen_BMS: Tensor) -> Tensor:
        """Interest of each candidate [B, M, H * Z]; zeros where no event was chosen."""
        q = self.query(item_BMD).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k = self.key(z_BSZ).unflatten(2, (self.heads, -1)).transpose(1, 2)
        logits = q @ k.transpose(2, 3) * k.shape[3] ** -0.5
        chosen = chosen_BMS[:, None]
        # A large negative number, not -inf, whose softmax over an empty choice has no value and no gradient.
        attention = logits.masked_fill(~chosen, torch.finfo(logits.dtype).min).softmax(3) * chosen
        return (attention @ z_BSZ[:, None]).transpose(1, 2).flatten(2)
