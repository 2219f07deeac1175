"""The check of a day's pathway tables, at the end of the step that writes them: found["quality"] = check_pathways(...)

A critical failure stops the day there; warnings go into the release and the report, beside those of `validate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfp_components.context import Run

FOLDER = "quality"
"""Below the run's folder: results.json and Data Docs of the lake's tables, and in `pathways/` of the pathway tables."""


def check_pathways(run: Run, progress: Callable[[str], None]) -> dict[str, Any]:
    """Counts and failed results of the pathway suites; ValueError for a critical failure. All results: FOLDER."""
    from data_quality.checkpoint import require, validate_pathways
    from data_quality.pathways import pathway_tables
    from feature_repo.views import VIEW_COLUMNS

    w = run.workspace
    out = w.run_dir(run.day) / FOLDER / "pathways"
    tables = pathway_tables(VIEW_COLUMNS)
    found = validate_pathways(lake=w.lake, features=w.features, day=run.day, tables=tables, out=out, progress=progress)
    require(found)
    return found
