"""Canary: the candidate answers a growing share of the users, and is taken out by itself when it is worse."""

from __future__ import annotations

from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome
from kfp_components.traffic import meet
from serving.stages import run_canary


def run(run: Run, **asked: Any) -> Outcome:
    """`asked`: as `kfp_components.traffic.meet` takes it."""
    return meet(run, "canary", run_canary, **asked)
