"""The format (legality) reward of TR section 2.4.3: teach the policy to spell tuples that are items.

Of the G free samples of a user, K take part. A legal one gets advantage 1, as it is; an illegal one is dropped
(advantage 0, no gradient, never a negative one). Which K is the point: chosen at random, legality rises everywhere;
chosen by probability, the policy learns only what it knew already (the paper's ablation, kept as `top_k`).

Legend: B users, G samples a user, K chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.reward.reward import Reward, RewardInput, RewardSetup

Selection = Callable[[Tensor, int, torch.Generator], Tensor]


def legality(setup: RewardSetup) -> Reward:
    """The registered reward: 1 for a tuple that is an item, 0 for one that is none."""
    return format_advantage


def format_advantage(generated: RewardInput) -> Tensor:
    """1 for a legal sample, 0 (no gradient) for an illegal one, never negative, [B, G]."""
    return (generated.item_BG >= 0).float()


def random_k(logp_BG: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """K samples of each user at random, without replacement: positions [B, K]."""
    noise = torch.rand(logp_BG.shape, generator=generator, device=generator.device).to(logp_BG.device)
    return noise.topk(min(k, logp_BG.shape[1]), 1).indices


def top_k(logp_BG: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The K most probable samples of each user (the ablation): positions [B, K]."""
    return logp_BG.topk(min(k, logp_BG.shape[1]), 1).indices


SELECTIONS: dict[str, Selection] = {"random": random_k, "top": top_k}


def selection(name: str) -> Selection:
    """A selection by its name in the configuration."""
    if name not in SELECTIONS:
        raise ValueError(f"format selection is {name!r}; choose one of {sorted(SELECTIONS)}")
    return SELECTIONS[name]
