"""What every step of a run is told, and how it runs: `run.step(...)` is `run_step` with the run's day, seed and mode.

run = Run(workspace=Workspace(root="var", source="simulated"), day="2022-05-05", seed=0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp_components.step import Body, Outcome, run_step
from kfp_components.workspace import STEPS, Workspace, check_day


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One day of one source. From step `fresh_from` on nothing is reused ("" reuses whatever is unchanged)."""

    workspace: Workspace
    day: str
    seed: int
    fresh_from: str = ""

    def __post_init__(self) -> None:
        check_day(self.day)
        if self.fresh_from and self.fresh_from not in STEPS:
            raise ValueError(f"unknown step {self.fresh_from!r}; the steps are {', '.join(STEPS)}")

    def step(
        self,
        name: str,
        *,
        inputs: Sequence[Outcome | None],
        rooms: Sequence[str],
        body: Body,
        settings: Mapping[str, Any] | None = None,
        outside: Callable[[Mapping[str, Any]], list[Path]] | None = None,
        state: Sequence[Path] = (),
    ) -> Outcome:
        """`run_step` for this day. Inputs that are None (no day before) are left out; the seed is a setting."""
        return run_step(
            workspace=self.workspace,
            day=self.day,
            step=name,
            inputs=[o for o in inputs if o is not None],
            rooms=[*rooms, f"kfp_components/{name}/step.py"],
            settings={"seed": self.seed, **(settings or {})},
            body=body,
            outside=outside,
            state=state,
            fresh=bool(self.fresh_from) and STEPS.index(name) >= STEPS.index(self.fresh_from),
        )
