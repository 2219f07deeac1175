"""What each step needs of a cluster, by name: the one table to change when a step grows.

RESOURCES["pretrain"].gpus

Locally nothing of it is used: the subprocess runner knows no limits.
"""

from __future__ import annotations

import dataclasses

HOUR = 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """`cpu` and `memory` are limits; `gpu_type` is the node label nvidia.com/gpu.product. A step that runs into its
    time, or whose machine goes away, is tried again: what it finished before is kept. `writes_features`: its pod may
    reach the online store."""

    cpu: str = "2"
    memory: str = "8Gi"
    gpus: int = 0
    gpu_type: str = "NVIDIA-H100-80GB-HBM3"
    shared_memory: str = "16Gi"
    timeout_s: int = HOUR
    retries: int = 2
    writes_features: bool = False


_GPU = Resources(cpu="16", memory="128Gi", gpus=1, timeout_s=8 * HOUR)
RESOURCES: dict[str, Resources] = {
    "ingest": Resources(cpu="8", memory="32Gi", timeout_s=2 * HOUR),
    "validate": Resources(memory="16Gi"),
    "pathways": Resources(cpu="16", memory="64Gi", timeout_s=4 * HOUR),
    "materialize": Resources(timeout_s=2 * HOUR, writes_features=True),
    "tokenize": Resources(cpu="16", memory="128Gi", gpus=1, timeout_s=4 * HOUR),
    "pretrain": _GPU,
    "reward": Resources(cpu="16", memory="64Gi", gpus=1, timeout_s=4 * HOUR),
    "align": _GPU,
    "evaluate": Resources(cpu="16", memory="64Gi", gpus=1, timeout_s=2 * HOUR),
    "publish": Resources(memory="16Gi"),
    "serve": Resources(cpu="8", memory="32Gi", gpus=1),
    "gate": Resources(timeout_s=600),
    # They wait for traffic. A candidate that was taken out must be looked at, not tried again.
    "shadow": Resources(cpu="1", memory="4Gi", retries=0, timeout_s=12 * HOUR),
    "canary": Resources(cpu="1", memory="4Gi", retries=0, timeout_s=24 * HOUR),
    # Moving a channel is a compare-and-swap: a second try that lost a race must be looked at, not repeated.
    "promote": Resources(retries=0, timeout_s=600),
    "report": Resources(timeout_s=600),
    "command": Resources(retries=0, timeout_s=2 * HOUR),  # a rollback tried twice goes back twice
    "announce": Resources(cpu="500m", memory="1Gi", timeout_s=300),
}
