"""The knobs of alignment, as pipelines and benchmarks set them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from models.reward.industrial import Rule
from models.training.objectives import ObjectiveConfig
from models.training.preference import PreferenceConfig
from models.training.rollout import RolloutConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Published: half of the sessions dropped, 1 % of its users. Half the published learning rates, as batches are
    small; this and the rest: docs/decisions/alignment.md."""

    lr_sparse: float = 5e-5
    lr_dense: float = 4e-5
    warmup_share: float = 0.05  # then annealed to a tenth, as in pre-training
    clip_norm: float = 1.0
    batch_size: int = 32
    min_steps: int = 120  # at bootstrap: a small day is passed over several times,
    max_passes: int = 10  # but a tiny one not for ever
    max_steps: int = 400
    rsft_weight: float = 1.0
    item_loss_weight: float = 1.0
    user_share: float = 0.01
    min_users: int = 1024
    users_per_step: int = 16
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    rollout_process: bool = False  # the worker in a process of its own, one step ahead of the trainer
    sync_every: int = 4  # steps between pushes to the rollout worker; 0: never, the pre-trained model generates
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    rewards: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"p_score": 1.0})
    rules: tuple[Rule, ...] = ()
    exposure_window: int = 5000
    probe_users: int = 1024
    probe_k: int = 50
    check_every: int = 60  # steps between looks at the probe; 0: only before and after
    allowed_recall_loss: float = 0.05  # relative; beyond it the pre-trained model is kept


def align_later_day() -> AlignConfig:
    """For a day whose model was aligned the day before: one pass over its sessions (docs/decisions/alignment.md)."""
    return AlignConfig(min_steps=1)
