"""The one type of a reward, and the registry that gives rewards their names in the configuration.

    reward = build_rewards({"p_score": 1.0, "session": 0.5}, RewardSetup(reward=Path("reward"), tokenizer=tok))
    value_BG = reward(RewardInput(context=context, codes_BGL=codes, item_BG=item))

A reward maps users and what was generated for them to values. A new one takes one file under models/reward with a
builder `(RewardSetup) -> Reward`, one line in `REGISTRY` and its name with a weight in the configuration.

Legend: B users, G generated items a user, L=3 levels.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.reward.pscore import PScore
from models.training.checkpoint import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardInput:
    """What was generated: the users' contexts, code tuples [B, G, 3] and items [B, G] (catalogue index, -1 illegal)."""

    context: dict[str, Tensor]
    codes_BGL: Tensor
    item_BG: Tensor


Reward = Callable[[RewardInput], Tensor]
"""Values [B, G], higher is better. Where `item_BG` is -1 there is no item: the caller ignores the value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSetup:
    """What builders may read: the reward model's directory, the tokenizer, the device."""

    reward: Path
    tokenizer: Tokenizer
    device: str = "cpu"


REGISTRY = {
    "p_score": "models.reward.reward:p_score",
    "format": "models.reward.format:legality",
    "session": "models.reward.session:session",
}


def build_rewards(weights: Mapping[str, float], setup: RewardSetup) -> Reward:
    """The weighted sum of registered rewards. Raises ValueError for a name that is not registered or a weight <= 0."""
    if not weights:
        raise ValueError(f"no reward is configured; name at least one of {sorted(REGISTRY)} with its weight")
    terms: list[tuple[float, Reward]] = []
    for name, weight in weights.items():
        if name not in REGISTRY:
            raise ValueError(f"reward {name!r} is not registered; use one of {sorted(REGISTRY)} or register it")
        if not weight > 0:
            raise ValueError(f"reward {name!r} has weight {weight}; weights are positive, leave the name out instead")
        module, function = REGISTRY[name].split(":")
        terms.append((weight, getattr(importlib.import_module(module), function)(setup)))

    def total(generated: RewardInput) -> Tensor:
        values = [weight * reward(generated) for weight, reward in terms]
        return torch.stack(values).sum(0)

    return total


def p_score(setup: RewardSetup) -> Reward:
    """The preference reward: P-Score of the item, in (0, 1)."""
    model = PScore.load(setup.reward, setup.tokenizer).to(setup.device).eval()
    return lambda generated: model.score(generated.context, generated.item_BG.clamp_min(0))
