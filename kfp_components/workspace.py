"""Where everything of a run lies: the one place that knows the folders.

workspace = Workspace(root="var", source="simulated")
workspace.step_dir("2022-05-05", "pretrain")
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import re
import shutil
from pathlib import Path

PIPELINES: dict[str, tuple[str, ...]] = {
    "features": ("ingest", "validate", "pathways", "materialize"),
    "tokenizer": ("tokenize",),
    "training": ("pretrain", "reward", "align", "evaluate", "publish"),
    "gate": ("serve", "gate"),
    "shadow": ("shadow",),
    "canary": ("canary",),
    "promote": ("promote", "report"),
}
STEPS = tuple(step for steps in PIPELINES.values() for step in steps)
TRAFFIC = ("shadow", "canary")  # steps of a day that only run where servers meet traffic
# The parts of a day: one DAG each (onerec_<part>), of one or more pipelines.
PARTS: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "tokenizer": ("tokenizer",),
    "training": ("training",),
    "release": ("gate", *TRAFFIC, "promote"),
}
# Parameters `<name>_uri` and `<name>_digest` of a pipeline, and the earlier step whose outcome they name.
IMPORTS: dict[str, dict[str, str]] = {
    "features": {},
    "tokenizer": {"tables": "ingest", "features": "pathways"},
    "training": {"tables": "ingest", "quality": "validate", "features": "pathways", "tokenizer": "tokenize"},
    "gate": {
        "release": "publish",
        "quality": "validate",
        "features": "pathways",
        "online": "materialize",
        "evaluation": "evaluate",
    },
    "shadow": {"release": "publish", "decision": "gate"},
    "canary": {"release": "publish", "decision": "gate"},
    "promote": {"release": "publish", "decision": "gate"},
}
OUTCOME = "_outcome.json"
_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]*")


def steps_of(part: str) -> tuple[str, ...]:
    """The steps that a part of a day leaves on any machine, in order."""
    return tuple(step for pipeline in PARTS[part] for step in PIPELINES[pipeline] if step not in TRAFFIC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workspace:
    """The folders of one source below a root (both are created by whoever writes into them)."""

    root: str = "var"
    source: str = "simulated"

    def __post_init__(self) -> None:
        if not _SOURCE.fullmatch(self.source):
            raise ValueError(f"source {self.source!r} is no folder name; use small letters, digits, '.', '_' and '-'")

    @property
    def base(self) -> Path:
        return Path(self.root).resolve() / self.source

    @property
    def lake(self) -> Path:
        return self.base / "lake"

    @property
    def features(self) -> Path:
        return self.base / "features"

    @property
    def feature_store(self) -> Path:
        return self.base / "feature_store"

    @property
    def store(self) -> Path:
        return self.base / "store"

    def step_dir(self, day: str, step: str) -> Path:
        """The output of one step of one day; whole or absent."""
        if step not in STEPS:
            raise ValueError(f"unknown step {step!r}; the steps are {', '.join(STEPS)}")
        return self.base / "days" / check_day(day) / step

    def outcome(self, day: str, step: str) -> Path:
        return self.step_dir(day, step) / OUTCOME

    def days_with(self, step: str) -> list[str]:
        """The days on which a step has left its outcome, in order."""
        return sorted(path.parent.parent.name for path in self.base.glob(f"days/*/{step}/{OUTCOME}"))

    def run_dir(self, day: str) -> Path:
        """What a person reads about a day: report, recommendations, logs."""
        return Path(self.root).resolve() / "runs" / check_day(day)

    def log(self, day: str, step: str) -> Path:
        return self.run_dir(day) / "logs" / f"{step}.log"

    def progress(self, day: str) -> Path:
        """One JSON object a line: what the steps of the day do, as they do it."""
        return self.run_dir(day) / "progress.jsonl"

    def partition(self, table: str, day: str) -> Path:
        """The Parquet file of a lake table or feature view of one day."""
        base = self.lake if table in ("impressions", "items", "users") else self.features
        return base / table / f"dt={day}" / "part-0.parquet"

    def request_refit(self, day: str) -> None:
        """Ask for new codebooks on a day. The request stays, so that a rerun of the day gives the same IDs."""
        self._refit(day).parent.mkdir(parents=True, exist_ok=True)
        self._refit(day).touch()

    def refit_requested(self, day: str) -> bool:
        return self._refit(day).is_file()

    def _refit(self, day: str) -> Path:
        return self.base / "refits" / check_day(day)

    def training_sets(self, day: str, *, bootstrap: bool) -> list[Path]:
        """The training partitions a day learns from: all up to the day at bootstrap, else only its own."""
        name = f"dt={check_day(day)}"
        folders = (
            sorted((self.features / "training").glob("dt=*")) if bootstrap else [self.features / "training" / name]
        )
        files = [f / "part-0.parquet" for f in folders if f.name <= name]
        if missing := [f for f in files if not f.is_file()] or (not files and [self.features / "training"]):
            raise ValueError(f"{missing[0]} does not exist; run the day again from pathways")
        return files


def check_day(day: str) -> str:
    """The day itself when it reads YYYY-MM-DD, else ValueError."""
    try:
        written = dt.date.fromisoformat(day).isoformat()
    except ValueError:
        written = None
    if written != day:  # also 20220505 and 2022-W18-4, which name a day in another way
        raise ValueError(f"{day!r} is not a day; write it as YYYY-MM-DD")
    return day


def day_before(day: str) -> str:
    return (dt.date.fromisoformat(check_day(day)) - dt.timedelta(days=1)).isoformat()


def put_file(source: Path, target: Path) -> None:
    """Copy a file for people to find; a reader sees the old or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, staged)
    os.replace(staged, target)
