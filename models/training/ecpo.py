"""ECPO, the early-clipped group-relative policy optimisation (TR section 2.4.1).

A policy ratio is per item: the product of its three code probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON, DELTA = 0.2, 0.1  # delta is published; epsilon is not (docs/decisions/alignment.md)


def ecpo_objective(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, epsilon: float = EPSILON, delta: float = DELTA
) -> Tensor:
    """The objective of each sample (to be maximised), any shape.

    pi_old is raised to sg(pi) / (1 + epsilon + delta), which bounds the ratio, so that a negative advantage cannot
    explode: with A = -1 and epsilon .2, delta .1 value and gradient factor never pass -1.3.
    """
    logp_floor = logp.detach() - torch.log1p(torch.tensor(epsilon + delta, dtype=logp.dtype, device=logp.device))
    ratio = torch.exp(logp - torch.maximum(logp_old, logp_floor))
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def group_advantage(reward_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """(r - mean) / std within each user's group over the valid samples; 0 where invalid or all rewards are equal."""
    n = valid_BG.sum(1, keepdim=True).clamp_min(1)
    reward = torch.where(valid_BG, reward_BG, 0.0)
    mean = reward.sum(1, keepdim=True) / n
    variance = (torch.where(valid_BG, reward_BG - mean, 0.0) ** 2).sum(1, keepdim=True) / n
    advantage = (reward_BG - mean) / variance.sqrt().clamp_min(1e-6)
    return torch.where(valid_BG & (variance > 1e-12), advantage, 0.0)
