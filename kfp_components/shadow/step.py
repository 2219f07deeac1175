"""Shadow: the candidate runs on a share of real requests, its answers are compared with production's and not shown."""

from __future__ import annotations

from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome
from kfp_components.traffic import meet
from serving.stages import run_shadow


def run(run: Run, **asked: Any) -> Outcome:
    """`asked`: as `kfp_components.traffic.meet` takes it."""
    return meet(run, "shadow", run_shadow, **asked)
