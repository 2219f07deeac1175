"""Policy objectives behind one interface: (logp, logp_old, advantage) -> the objective of each sample, to be maximised.

    objective = make_objective(ObjectiveConfig(name="ecpo"))
    loss = -objective(logp_BG, logp_old_BG, advantage_BG).mean()

logp is log pi(o | u) of whole code tuples under the policy, logp_old under the behaviour policy that generated them;
advantage is standardised in each user's group and 0 where a sample does not count. All are [B, G].

    ecpo  early-clipped GRPO (OneRec TR section 2.4.1), `models/training/ecpo.py`
    grpo  the same surrogate on the plain ratio, and -beta KL(pi || reference) if kl_beta > 0
    gbpo  gradient-bounded (OneRec-V2): the ratio's denominator is raised, nothing is clipped
    dpo   the best of a group against its worst (OneRec V1). Its reference is the behaviour policy: with a behaviour
          that is pushed every N steps this is V1's iterative DPO, with one that is never pushed it is plain DPO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.ecpo import DELTA, EPSILON, ecpo_objective

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which objective and its constants. delta is published; epsilon and both betas: docs/decisions/alignment.md."""

    name: str = "ecpo"
    epsilon: float = EPSILON
    delta: float = DELTA
    kl_beta: float = 0.0
    dpo_beta: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"objective is {self.name!r}; choose one of {sorted(OBJECTIVES)}")
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}; it must lie between 0 and 1 (0.2 is usual)")
        for name, value in (("delta", self.delta), ("kl_beta", self.kl_beta)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if not self.dpo_beta > 0:
            raise ValueError(f"dpo_beta is {self.dpo_beta}; it must be over 0 (0.1 is usual)")
        if self.kl_beta and self.name != "grpo":
            raise ValueError(f"kl_beta is {self.kl_beta} but only grpo has a KL term; set it to 0 for {self.name}")


def make_objective(config: ObjectiveConfig, logp_reference: Tensor | None = None) -> Objective:
    """The objective of a configuration. `logp_reference` [B, G] is needed for GRPO with a KL term only."""
    if config.kl_beta and logp_reference is None:
        raise ValueError("grpo with kl_beta over 0 needs the reference policy's log-probabilities")
    build = OBJECTIVES[config.name]
    return lambda logp, logp_old, advantage: build(logp, logp_old, advantage, config, logp_reference)


def _ecpo(logp: Tensor, logp_old: Tensor, advantage: Tensor, c: ObjectiveConfig, _: Tensor | None) -> Tensor:
    return ecpo_objective(logp, logp_old, advantage, c.epsilon, c.delta)


def _grpo(logp: Tensor, logp_old: Tensor, advantage: Tensor, c: ObjectiveConfig, reference: Tensor | None) -> Tensor:
    """min(rho A, clip(rho) A) - beta KL, with the unbiased estimate pi_ref/pi - log(pi_ref/pi) - 1 of GRPO."""
    ratio = torch.exp(logp - logp_old)
    value = torch.minimum(ratio * advantage, ratio.clamp(1 - c.epsilon, 1 + c.epsilon) * advantage)
    if reference is None or not c.kl_beta:
        return value
    gap = reference - logp
    kl = torch.exp(gap) - gap - 1
    return value - c.kl_beta * torch.where(advantage != 0, kl, 0.0)


def _gbpo(logp: Tensor, logp_old: Tensor, advantage: Tensor, c: ObjectiveConfig, _: Tensor | None) -> Tensor:
    """rho A with pi'_old = max(pi_old, sg(pi)) for A >= 0 and max(pi_old, 1 - sg(pi)) for A < 0."""
    now = logp.detach()
    complement = torch.log1p(-torch.exp(now).clamp_max(1 - torch.finfo(logp.dtype).eps))
    floor = torch.where(advantage >= 0, now, complement)
    return torch.exp(logp - torch.maximum(logp_old, floor)) * advantage


def _dpo(logp: Tensor, logp_old: Tensor, advantage: Tensor, c: ObjectiveConfig, _: Tensor | None) -> Tensor:
    """log sigmoid(beta (winner's - loser's log-ratio)) at the winner's place times G, 0 elsewhere.

    The factor G makes the mean over the group the pair's objective. A group whose rewards are all equal has no pair.
    """
    best, worst = advantage.argmax(-1, keepdim=True), advantage.argmin(-1, keepdim=True)
    # Differences only of the chosen: a place that does not count may hold -inf on both sides.
    gap_best = logp.gather(-1, best) - logp_old.gather(-1, best)
    gap_worst = logp.gather(-1, worst) - logp_old.gather(-1, worst)
    pair = F.logsigmoid(c.dpo_beta * (gap_best - gap_worst))
    differ = advantage.gather(-1, best) > advantage.gather(-1, worst)
    pair = torch.where(differ, pair, 0.0) * logp.shape[-1]
    return torch.zeros_like(logp).scatter(-1, best, pair)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor, ObjectiveConfig, Tensor | None], Tensor]] = {
    "ecpo": _ecpo,
    "grpo": _grpo,
    "gbpo": _gbpo,
    "dpo": _dpo,
}
