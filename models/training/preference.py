"""The reinforcement half of an alignment step: rollouts to rewards, advantages and the loss (TR section 2.4).

    prefer = Preference(PreferenceConfig(), ObjectiveConfig(), reward, None, seed, "cpu")
    loss, stats = prefer.loss(policy, context, rollout)

Legend: B users, G items a group, F free samples, K format samples, L=3 levels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from models.onerec.model import OneRec
from models.reward.format import format_advantage, selection
from models.reward.reward import Reward, RewardInput
from models.training.ecpo import ecpo_objective, group_advantage
from models.training.objectives import ObjectiveConfig, make_objective
from models.training.rollout import Rollout, item_logp, level_logps, sequence_logp
from models.training.safety import ratio_health


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Weights against RSFT's loss, and the format reward. Published: K = 5 of 128, at random."""

    policy_weight: float = 0.7
    item_policy_weight: float = 0.0  # the same objective on the item-level head
    format_weight: float = 1.5  # 0 turns the format reward off
    format_k: int = 5
    format_selection: str = "random"

    def __post_init__(self) -> None:
        selection(self.format_selection)
        if self.format_k < 1:
            raise ValueError(f"format_k is {self.format_k}; choose at least one sample, or format_weight 0 for none")
        for name in ("policy_weight", "item_policy_weight", "format_weight"):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"{name} is {value}; a weight is at least 0")


class Preference:
    """Turns rollouts into a loss. `reference` is needed for an objective with a KL term only."""

    def __init__(
        self,
        config: PreferenceConfig,
        objective: ObjectiveConfig,
        reward: Reward,
        reference: OneRec | None,
        seed: int,
        device: str,
        session_items: int = 1,
    ) -> None:
        self.config, self.objective, self.reward, self.reference = config, objective, reward, reference
        self.session_items = session_items  # of RolloutConfig: so many neighbours in the group are one sample
        self.device, self.generator = device, torch.Generator().manual_seed(seed)
        self.select = selection(config.format_selection)

    def loss(self, policy: OneRec, context: dict[str, Tensor], r: Rollout) -> tuple[Tensor, dict[str, Any]]:
        """Weighted policy and format loss (to be minimised), and what the step saw, for the curve."""
        c = self.config
        context = {k: v.to(self.device) for k, v in context.items()}
        with torch.no_grad():
            reward = self.reward(RewardInput(context=context, codes_BGL=r.codes_BGL, item_BG=r.item_BG))
            valid = self._lists(r.valid_BG.float()) == self.session_items
            advantage = group_advantage(self._lists(reward) / self.session_items, valid)
        pick = self.select(r.free_logp_old_BF, c.format_k, self.generator)
        free_codes = r.free_codes_BFL.gather(1, pick[..., None].expand(-1, -1, r.free_codes_BFL.shape[-1]))
        free_item, free_old = r.free_item_BF.gather(1, pick), r.free_logp_old_BF.gather(1, pick)
        z, mask = policy.encode(context)
        logp, entropy = level_logps(policy, torch.cat([r.codes_BGL, free_codes], 1), z, mask)
        G = r.codes_BGL.shape[1]
        objective = make_objective(self.objective, self._reference_logp(context, r))
        whole, whole_old = self._lists(logp[:, :G]), self._lists(r.logp_old_BG)
        loss = -c.policy_weight * objective(whole, whole_old, advantage).mean()
        if c.item_policy_weight:
            by_item = make_objective(dataclasses.replace(self.objective, kl_beta=0.0))
            own = self._lists(item_logp(policy, r.item_BG, z))
            loss = loss - c.item_policy_weight * by_item(own, self._lists(r.item_logp_old_BG), advantage).mean()
        if c.format_weight:
            legal = format_advantage(RewardInput(context=context, codes_BGL=free_codes, item_BG=free_item))
            o = self.objective
            loss = loss - c.format_weight * ecpo_objective(logp[:, G:], free_old, legal, o.epsilon, o.delta).mean()
        stats = {
            "reward": reward[r.valid_BG].mean().item() if r.valid_BG.any() else 0.0,
            "legality": (r.free_item_BF >= 0).float().mean().item(),
            "policy_loss": loss.item(),
            "entropy": entropy.sum().item(),
            "staleness": r.staleness,
            "on_policy": float(r.on_policy),
            **ratio_health(whole, whole_old, advantage, self.objective.epsilon),
        }
        return loss, stats

    def _lists(self, value_BG: Tensor) -> Tensor:
        """Sums over the items of each list, [B, G / m]: a list's log-probability is the sum of its items'."""
        return value_BG if self.session_items == 1 else value_BG.unflatten(1, (-1, self.session_items)).sum(2)

    @torch.no_grad()
    def _reference_logp(self, context: dict[str, Tensor], r: Rollout) -> Tensor | None:
        if self.reference is None:
            return None
        z, mask = self.reference.encode(context)
        return self._lists(sequence_logp(self.reference, r.codes_BGL, z, mask))
