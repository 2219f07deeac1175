"""Rollouts: a worker with its own copy of the policy generates items for users; the trainer pushes parameters to it.

    worker = RolloutWorker(load_model(model, tok), tok, RolloutConfig(), seed=7)
    worker.push(policy.state_dict(), step=0)
    rollout = worker.collect(worker.request(context), step=0)

The published system keeps the two apart and pushes every 1000 steps. Here they share a process by default;
`models/training/rollout_process.py` is the same worker in a process of its own.

Legend: B users, G items a group, F free samples, S seen items, L=3 levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from models.onerec.beam_search import beam_search, sample_codes
from models.onerec.model import OneRec
from models.onerec.ranking import ITEM_SCORE_WEIGHT
from models.training.checkpoint import Tokenizer

SEARCHES = ("beam", "free_beam", "sample")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How a group is generated: `beam` is held to the trie, `free_beam` and `sample` may spell what is no item.

    Items that the user has seen are no candidates: they are never recommended again, and P-Score knows nothing of them,
    as no item of its impressions lies in the user's history. `seen` leaves them in.
    With `session_items` m over 1 the group is shuffled and cut into lists of m, which are rewarded and compared as V1's
    sessions are; a remainder is left out.
    """

    group_size: int = 32
    session_items: int = 1
    search: str = "beam"
    top_k: int = 0
    top_p: float = 1.0
    free_samples: int = 32
    seen: bool = False

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search is {self.search!r}; choose one of {list(SEARCHES)}")
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; a group needs two items to compare")
        if not 1 <= self.session_items <= self.group_size // 2:
            raise ValueError(
                f"session_items is {self.session_items} and group_size {self.group_size}; a group needs two lists to "
                "compare, and a list an item"
            )
        if self.free_samples < 1:
            raise ValueError(f"free_samples is {self.free_samples}; the format reward and legality need at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """What was generated for B users. `valid` is False where no item counts: a surplus beam, illegal, or seen."""

    codes_BGL: Tensor
    item_BG: Tensor
    valid_BG: Tensor
    logp_old_BG: Tensor
    item_logp_old_BG: Tensor  # of the item-level head; 0 where there is no item
    free_codes_BFL: Tensor
    free_item_BF: Tensor
    free_logp_old_BF: Tensor
    staleness: int  # optimiser steps since the parameters that generated it

    @property
    def on_policy(self) -> bool:
        return self.staleness == 0

    def shown(self, count: int) -> Tensor:
        """The items that serving would show first, in its order [B, <= count]; -1 where there are fewer."""
        score = self.logp_old_BG + ITEM_SCORE_WEIGHT * self.item_logp_old_BG
        score = torch.where(self.valid_BG, score, float("-inf"))
        return self.item_BG.gather(1, score.topk(min(count, score.shape[1]), 1).indices)


class Worker(Protocol):
    """What the trainer needs of a worker. A request may be collected later: a separate process works meanwhile."""

    def push(self, state: Mapping[str, Tensor], step: int) -> None: ...

    def request(self, context: dict[str, Tensor]) -> int: ...

    def collect(self, ticket: int, step: int) -> Rollout: ...

    def close(self) -> None: ...


class RolloutWorker:
    """The worker in the trainer's process."""

    def __init__(self, model: OneRec, tok: Tokenizer, config: RolloutConfig, seed: int) -> None:
        self.model, self.config = model.eval(), config
        self.device = model.bos_D.device
        self.trie = tok.trie.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.pushed_at, self._contexts, self._next = 0, dict[int, dict[str, Tensor]](), 0

    def push(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take over the trainer's parameters, those after `step` optimiser steps."""
        self.model.load_state_dict(state)
        self.pushed_at = step

    def request(self, context: dict[str, Tensor]) -> int:
        """Queue users; the ticket collects their rollout."""
        self._next += 1
        self._contexts[self._next] = context
        return self._next

    def collect(self, ticket: int, step: int) -> Rollout:
        """The rollout of a ticket; `step`: optimiser steps taken until now."""
        tensors = self.generate(self._contexts.pop(ticket))
        return Rollout(**tensors, staleness=step - self.pushed_at)

    def close(self) -> None:
        """Nothing to end: the worker shares the trainer's process."""

    @torch.no_grad()
    def generate(self, context: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a `Rollout`, on the worker's device. `context` may hold `seen` [B, S], padded with -1."""
        c, context = self.config, {k: v.to(self.device) for k, v in context.items()}
        z, mask = self.model.encode(context)
        if c.search == "sample":
            codes = sample_codes(self.model, z, mask, c.group_size, self.generator, c.top_k, c.top_p)
            possible = torch.ones_like(codes[..., 0], dtype=torch.bool)
        else:
            codes, score = beam_search(self.model, z, mask, c.group_size, self.trie if c.search == "beam" else None)
            possible = torch.isfinite(score)  # a surplus beam may spell an item that stands in the group already
        if "seen" in context and not c.seen:
            possible &= (self.trie.lookup(codes)[..., None] != context["seen"][:, None]).all(2)
        if c.session_items > 1:
            codes, possible = self._lists(codes, possible)
        free = sample_codes(self.model, z, mask, c.free_samples, self.generator)
        logp = sequence_logp(self.model, torch.cat([codes, free], 1), z, mask)
        item = torch.where(possible, self.trie.lookup(codes), -1)
        G = codes.shape[1]
        return {
            "codes_BGL": codes,
            "item_BG": item,
            "valid_BG": item >= 0,
            "logp_old_BG": logp[:, :G],
            "item_logp_old_BG": item_logp(self.model, item, z),
            "free_codes_BFL": free,
            "free_item_BF": self.trie.lookup(free),
            "free_logp_old_BF": logp[:, G:],
        }

    def _lists(self, codes_BGL: Tensor, possible_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Each user's group in random order, cut to whole lists: in a beam's order the first list would be the best.

        What is impossible comes last, so that it spoils few lists.
        """
        B, G = possible_BG.shape
        noise = torch.rand(B, G, generator=self.generator, device=self.device) + (~possible_BG).float()
        keep = noise.argsort(1)[:, : G - G % self.config.session_items]
        return codes_BGL.gather(1, keep[..., None].expand(-1, -1, codes_BGL.shape[-1])), possible_BG.gather(1, keep)


def sequence_logp(model: OneRec, codes_BGL: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
    """log pi(o | u) of code tuples, summed over the levels, [B, G]."""
    return level_logps(model, codes_BGL, z, mask)[0]


def level_logps(model: OneRec, codes_BGL: Tensor, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """log pi(o | u) [B, G], and the mean entropy of each level's distribution on the way there, in nats, [L]."""
    total, entropy = [], []
    for level, logits in enumerate(model.code_logits(codes_BGL, z, mask)):
        logp = torch.log_softmax(logits.float(), -1)
        total.append(logp.gather(2, codes_BGL[..., level : level + 1])[..., 0])
        entropy.append(-(logp.detach().exp() * logp.detach()).sum(-1).mean())
    return torch.stack(total).sum(0), torch.stack(entropy)


def item_logp(model: OneRec, item_BG: Tensor, z: Tensor) -> Tensor:
    """log-probability of items under the item-level head [B, G], 0 where there is none (-1, or no head)."""
    if not model.config.item_head:
        return torch.zeros(item_BG.shape, device=z.device)
    logp = torch.log_softmax(model.item_logits(z).float(), -1).gather(1, item_BG.clamp_min(0))
    return torch.where(item_BG >= 0, logp, 0.0)
