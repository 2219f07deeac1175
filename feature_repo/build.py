"""The features of a day, whole: pathway tables, Feast definitions, then the training and the evaluation set.

    build_features(lake=..., features=..., feature_store=..., day="2022-05-05", ingest=..., previous=None,
                   bootstrap=True)

At bootstrap every day up to `day` is written, and the pseudo-days of an untimed history before them; later only `day`.
Evaluation uses the impressions of the next day. Where these do not exist yet, the last hours of `day` are held back
from training and evaluated on instead; the next day's training set then begins with them, so nothing is lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from datasets.partitions import partition_days, partition_path, read_manifest
from feature_repo import training_set
from feature_repo.config import PathwaysConfig
from feature_repo.lifelong_rows import STATE
from feature_repo.pathways import VIEWS, Pathways, Window
from feature_repo.store import apply


def build_features(
    *,
    lake: Path,
    features: Path,
    feature_store: Path,
    day: str,
    ingest: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    bootstrap: bool,
    config: PathwaysConfig = PathwaysConfig(),  # noqa: B008 (frozen)
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write all feature partitions of a day; returns what was written (paths relative to `features`) and
    the interval to materialize.

    `ingest`: what the ingest of the day returned. `previous`: what this returned for the day before, if any.
    """
    today = date.fromisoformat(day)
    tomorrow_exists = ingest["evaluation_day"] is not None
    carried = datetime.fromisoformat(previous["held_back_from"]) if previous and previous["held_back_from"] else None
    since = None if bootstrap else today - timedelta(days=1 if carried else 0)
    written: list[Path] = []
    with Pathways(
        lake=lake, features=features, day=today, timezone=ingest["timezone"], since=since, config=config
    ) as pathways:
        days = [*pathways.history_days(), *(d for d in pathways.days if d <= today)] if bootstrap else [today]
        if bootstrap:
            _clear_before(features, days)
        cutoff = None if tomorrow_exists else pathways.held_back_from(today)
        for number, current in enumerate(days, 1):
            yesterday = current - timedelta(days=1)
            start, end = pathways.end_of(yesterday), cutoff if current == today else None
            # Impressions before the day began (its log day is the source's word) need a context before them.
            early = (pathways.end_of(yesterday - timedelta(days=1)), None, start, current)
            windows: list[Window] = [early, (start, start, end, current)]
            if current == today and carried:
                windows.append((carried, carried, None, yesterday))
            written += pathways.write_views(current, cutoff=cutoff if current == today else None)
            written.append(pathways.write_labels("labels", current, windows))
            progress(f"day {number}/{len(days)}  {current}  pathways")
        tomorrow = today + timedelta(days=1)
        end_of_day = pathways.end_of(today)
        held = (cutoff, cutoff, None, today) if cutoff else (end_of_day, end_of_day, None, tomorrow)
        written.append(pathways.write_labels("evaluation_labels", today, [held]))
        interval = [pathways.end_of(days[0] - timedelta(days=1)), pathways.end_of(today)]
    apply(features=features, feature_store=feature_store)
    for number, current in enumerate(days, 1):
        training_set.build(features=features, feature_store=feature_store, day=current)
        written.append(partition_path(features / "training", current))
        progress(f"day {number}/{len(days)}  {current}  training set")
    training_set.build(features=features, feature_store=feature_store, day=today, kind="evaluation")
    written.append(partition_path(features / "evaluation", today))
    manifests = [read_manifest(path) for path in written]
    rows: dict[str, int] = {}
    for path, manifest in zip(written, manifests, strict=True):
        rows[path.parent.name] = rows.get(path.parent.name, 0) + manifest["rows"]
    return {
        "days": [d.isoformat() for d in days],
        "rows": rows,
        "written": [
            str((path / entry["path"]).relative_to(features))
            for path, m in zip(written, manifests, strict=True)
            for entry in m["files"]
        ],
        "held_back_from": cutoff.isoformat() if cutoff else None,
        "evaluation": f"held back from {cutoff.isoformat()}" if cutoff else f"day {tomorrow.isoformat()}",
        "end_of_day": interval[1].isoformat(),
        "interval": [instant.isoformat() for instant in interval],
    }


def _clear_before(features: Path, days: list[date]) -> None:
    """A bootstrap owns every day up to its own: partitions of days that the source no longer has would be joined."""
    for view in (*VIEWS, STATE, "labels", "training"):
        for stale in partition_days(features / view):
            if stale <= days[-1] and stale not in days:
                shutil.rmtree(partition_path(features / view, stale))
