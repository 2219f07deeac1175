"""Report of a day: one page and one JSON file with what all steps before it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome
from kfp_components.workspace import STEPS, TRAFFIC, put_file

FILES = ("report.html", "report.json")


def run(run: Run, *, decision: Outcome) -> Outcome:
    """Writes report.html and report.json, also into the run's folder."""
    w = run.workspace
    before = [
        Outcome.read(w.step_dir(run.day, step))
        for step in STEPS
        if step not in (decision.step, "report") and (step not in TRAFFIC or w.outcome(run.day, step).is_file())
    ]

    def body(out: Path, progress) -> dict[str, Any]:
        from kfp_components.report.collect import collect
        from kfp_components.report.page import write_report

        report = collect(w, run.day)
        write_report(report, out)
        return {"missing": report["missing"]}

    outcome = run.step(
        "report",
        inputs=[*before, decision],
        rooms=("kfp_components/report",),
        # The page shows the times too, which no digest covers.
        settings={"ended": {o.step: o.ended_at for o in [*before, decision]}},
        body=body,
    )
    for name in FILES:
        put_file(outcome.path / name, w.run_dir(run.day) / name)
    return outcome
