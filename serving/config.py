"""What a server is configured with: one typed configuration for the CPU binary and the GPU image.

    ServingConfig()                                cpu_laptop: two cores, one instance of each model
    ServingConfig(device="gpu", max_batch=32)      the same repository on a GPU

`Rollout` says what a candidate release gets of the traffic and when it is taken out again.
"""

from __future__ import annotations

import dataclasses

from models.onerec.ranking import MAX_BEAM

DEVICES = ("cpu", "gpu")
MODEL_PREFIX = "onerec-"  # of a release's model in Triton; its id follows


def _within(where: object, **bounds: tuple[float, float]) -> None:
    for name, (low, high) in bounds.items():
        if not low <= (value := getattr(where, name)) <= high:
            raise ValueError(f"{name} is {value}; it must lie in {low:g}..{high:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Raises ValueError that names the setting, its value and its bounds.

    device: where `onerec` runs. instances: processes of `onerec` (each holds the model) and of `recommend`.
    threads: CPU threads of one instance. max_batch: users in one run of the model. queue_delay_us: how long a request
    may wait for others to share its batch. max_queue, queue_timeout_ms: a request that finds the queue of `recommend`
    full, or waited longer, is refused with UNAVAILABLE. max_beam, max_k: bounds of what a request may ask for.
    feature_timeout_ms: after this the feature store counts as down for this read. cache_users, stale_s: how many
    users' features are kept for such times, and how old they may be.
    keep_loaded: releases that stay loaded after they were replaced; a rollback to one of them loads nothing.
    select: "p_score" lets the release's reward model order every answer, also where a request does not ask for it.
    """

    device: str = "cpu"
    onerec_instances: int = 1
    recommend_instances: int = 1
    threads: int = 2
    max_batch: int = 16
    queue_delay_us: int = 500
    max_queue: int = 128
    queue_timeout_ms: int = 2000
    max_beam: int = MAX_BEAM
    max_k: int = MAX_BEAM
    feature_timeout_ms: int = 250
    cache_users: int = 20_000
    stale_s: int = 24 * 3600
    keep_loaded: int = 1
    select: str = ""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device is {self.device!r}; choose one of {list(DEVICES)}")
        if self.select not in ("", "p_score"):
            raise ValueError(f"select is {self.select!r}; choose '' (the model's own order) or 'p_score'")
        _within(
            self,
            onerec_instances=(1, 64),
            recommend_instances=(1, 64),
            threads=(1, 256),
            max_batch=(1, 1024),
            queue_delay_us=(0, 1_000_000),
            max_queue=(1, 1_000_000),
            queue_timeout_ms=(1, 600_000),
            max_beam=(1, MAX_BEAM),
            max_k=(1, self.max_beam),
            feature_timeout_ms=(1, 60_000),
            cache_users=(0, 100_000_000),
            stale_s=(0, 365 * 24 * 3600),
            keep_loaded=(0, 16),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """How the candidate channel's release meets traffic.

    shadow_percent: share of answered requests that are also run on the candidate, compared, and not shown.
    canary_percent: share of users whom the candidate answers. After at least `min_requests` on the candidate it is
    taken out for good when, over the last `window` requests, its errors and those answers that are empty where
    production's to the same request is not pass `max_bad_percent`, when any item was illegal, or when its mean latency
    passes production's by `max_slowdown`.
    """

    shadow_percent: float = 0.0
    canary_percent: float = 0.0
    min_requests: int = 50
    window: int = 500
    max_bad_percent: float = 1.0
    max_slowdown: float = 2.0

    def __post_init__(self) -> None:
        _within(
            self,
            shadow_percent=(0, 100),
            canary_percent=(0, 100),
            min_requests=(1, self.window),
            window=(1, 100_000),
            max_bad_percent=(0, 100),
            max_slowdown=(1, 1000),
        )
