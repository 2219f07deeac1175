"""What a backfill will do: which days, what they have, what is rebuilt, and how long that took before.

plan = make_plan(workspace, days=["2022-05-03", "2022-05-04"], only="features", rebuild=False)
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from kfp_components.step import Outcome
from kfp_components.workspace import PARTS, Workspace, steps_of

# What `--only` names -> parts of a day, one DAG each. Without it a day is everything, and its release is judged too.
ONLY: dict[str, tuple[str, ...]] = {
    "": ("features", "tokenizer", "training", "release"),
    "features": ("features",),
    "tokenizer": ("tokenizer",),
    "retrain": ("training",),
}
# Pipelines of one phase wait for each other, so a phase holds one slot of the pool and the live day has the other.
PHASES: tuple[tuple[str, ...], ...] = (("features",), ("tokenizer", "training"), ("release",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`rebuilt`: the days that are run, oldest first; `has`: day -> the pipelines it has whole; `seconds`: of one day,
    by the median of what the steps took in this workspace, None when none has run."""

    days: tuple[str, ...]
    pipelines: tuple[str, ...]
    rebuilt: tuple[str, ...]
    has: dict[str, tuple[str, ...]]
    seconds: float | None

    def phases(self) -> list[tuple[str, ...]]:
        return [kept for phase in PHASES if (kept := tuple(p for p in phase if p in self.pipelines))]

    def lines(self) -> list[str]:
        """The plan for a person."""
        found = [f"{len(self.days)} day(s): {', '.join(self.days)}; pipelines: {', '.join(self.pipelines)}"]
        for day in self.days:
            what = "rebuild" if day in self.rebuilt else "keep"
            found.append(f"  {day}  {what:<8} has {', '.join(self.has[day]) or 'nothing'}")
        if not self.rebuilt:
            found.append("nothing to do: every day is whole (give --rebuild to make them anew)")
        elif self.seconds is None:
            found.append(f"rebuilds {len(self.rebuilt)} day(s); time unknown: no day has run here yet")
        else:
            total = self.seconds * len(self.rebuilt) / 60
            found.append(f"rebuilds {len(self.rebuilt)} day(s), about {total:.0f} min ({self.seconds / 60:.1f} a day)")
        return found


def make_plan(workspace: Workspace, *, days: Sequence[str], only: str, rebuild: bool) -> Plan:
    """Days that are not whole are rebuilt, and those after them, which start from them; `rebuild`: all of them."""
    pipelines = ONLY[only]
    has = {day: tuple(p for p in PARTS if whole(workspace, day, p)) for day in days}
    first = next((i for i, day in enumerate(days) if rebuild or set(pipelines) - set(has[day])), len(days))
    return Plan(
        days=tuple(days),
        pipelines=pipelines,
        rebuilt=tuple(days[first:]),
        has=has,
        seconds=_seconds(workspace, [step for p in pipelines for step in steps_of(p)]),
    )


def whole(workspace: Workspace, day: str, part: str) -> bool:
    """Has every step of a part of the day left an outcome whose files are there?"""
    try:
        return all(Outcome.read(workspace.step_dir(day, step)).whole() for step in steps_of(part))
    except ValueError:
        return False


def _seconds(workspace: Workspace, steps: Sequence[str]) -> float | None:
    total = 0.0
    for step in steps:
        took = [Outcome.read(workspace.step_dir(day, step)).seconds for day in workspace.days_with(step)]
        if not took:
            return None
        total += statistics.median(took)
    return total
