"""The page of a day: report.json and report.html in the run folder, each written whole or not at all.

    write_report(collect(workspace, day), workspace.run_dir(day))

The page is one file: no script, no font, no image from elsewhere. All text is escaped: captions come from users.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from kfp_components.report.drawings import FEW_POSITIVES, NAMES, RUNNING_MEAN, charts_of
from kfp_components.report.wording import FILTERS
from releases.describe import flatten


def write_report(report: dict[str, Any], run_dir: Path) -> None:
    """Write report.json and report.html into `run_dir`; a reader sees the old or the new file, never a part."""
    text, html = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", render(report)
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (("report.json", text), ("report.html", html)):
        staged = run_dir / f".{name}-{uuid.uuid4().hex}"
        try:
            with open(staged, "w", encoding="utf-8") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(staged, run_dir / name)
        finally:
            staged.unlink(missing_ok=True)


def render(report: dict[str, Any]) -> str:
    """The HTML of a report; a number that is missing shows as a dash, a section that is missing with its reason."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=ChainableUndefined,
    )
    env.filters |= {function.__name__: function for function in FILTERS}
    return env.get_template("template.html").render(
        r=report,
        v=report["verdict"],
        release=report["release"],
        charts=charts_of(report),
        names=NAMES,
        flatten=flatten,
        few=FEW_POSITIVES,
        running=RUNNING_MEAN,
    )
