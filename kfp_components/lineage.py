"""Where a day starts from: the release of the day before, or nothing at all (a bootstrap); and what made it.

before = release_before(workspace, "2022-05-06")      # None: bootstrap
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from datasets.partitions import read_manifest
from kfp_components.digest import REPOSITORY
from kfp_components.step import Outcome
from kfp_components.workspace import Workspace, check_day, day_before
from releases import stores
from releases.channels import read_channel
from releases.manifest import load_release, released
from releases.object_store import ObjectStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Before:
    """The day before: its outcome of `publish` and its release folder."""

    day: str
    release_id: str
    release: Path
    publish: Outcome

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Path]:
        """A folder with the model files and the optimiser state of the release, as pre-training wants them."""
        with tempfile.TemporaryDirectory() as folder:
            for file in [*(self.release / "model").iterdir(), *(self.release / "training_state").iterdir()]:
                (Path(folder) / file.name).symlink_to(file)
            yield Path(folder)


def release_before(workspace: Workspace, day: str) -> Before | None:
    """What `day` starts from. None when the workspace has no release of an earlier day: the day bootstraps.

    Raises ValueError when there are earlier releases but none of the day before: a gap would go unnoticed.
    """
    yesterday = day_before(day)
    if workspace.outcome(yesterday, "publish").is_file():
        publish = Outcome.read(workspace.step_dir(yesterday, "publish"))
        release_id = publish.metrics["release_id"]
        folder, _ = load_release(open_store(workspace), release_id)
        return Before(day=yesterday, release_id=release_id, release=folder, publish=publish)
    earlier = [d for d in released_days(workspace) if d < day]
    if not earlier:
        return None
    whole = [d for d in earlier if workspace.outcome(d, "publish").is_file()]
    first = (dt.date.fromisoformat(whole[-1]) + dt.timedelta(days=1)).isoformat() if whole else earlier[0]
    missing = yesterday if first == yesterday else f"{first} to {yesterday}"
    raise ValueError(
        f"{day} starts from the release of {yesterday}, which is not whole here (releases: {', '.join(earlier[-3:])}):"
        f" run the missing {missing} first (onerec backfill --from {first} --to {day}), or bootstrap {day} anew"
        f" in an empty workspace (another --root, or remove {workspace.base})"
    )


def features_before(workspace: Workspace, day: str) -> Outcome | None:
    """The outcome of `pathways` of the day before: what the features of `day` go on from. None: the first day here.

    Features ask for features, not for a release, so that a training that failed never holds the data back. ValueError
    when there are earlier days but not the one before.
    """
    yesterday = day_before(day)
    if workspace.outcome(yesterday, "pathways").is_file():
        return Outcome.read(workspace.step_dir(yesterday, "pathways"))
    earlier = [d for d in workspace.days_with("pathways") if d < day]
    if not earlier:
        return None
    first = (dt.date.fromisoformat(earlier[-1]) + dt.timedelta(days=1)).isoformat()
    missing = yesterday if first == yesterday else f"{first} to {yesterday}"
    raise ValueError(
        f"{day} starts from the features of {yesterday}, which are not here (the last are of {earlier[-1]}): run the"
        f" missing {missing} first (onerec backfill --from {first} --to {day}), or bootstrap {day} anew in an empty"
        f" workspace (another --root, or remove {workspace.base})"
    )


def released_days(workspace: Workspace) -> list[str]:
    """Days that have a published release, in order."""
    return sorted({check_day(name[:10]) for name in released(open_store(workspace))})


def production_before(workspace: Workspace, day: str) -> str | None:
    """The release that was in production when `day` began: the newest the channel named that is of an earlier day.

    A second run of the day judges against the same release as the first one did.
    """
    channel = read_channel(open_store(workspace), "production")
    named = [*channel.previous, channel.release_id] if channel else []
    return next((release_id for release_id in reversed(named) if release_id[:10] < day), None)


def open_store(workspace: Workspace) -> ObjectStore:
    """A directory of the workspace, or S3 where ONEREC_STORE says so."""
    return stores.open_store(workspace.store, source=workspace.source)


def partition_digests(files: list[Path]) -> dict[str, str]:
    """`<table>/<partition>` -> digest, for the Parquet files of partitions."""
    folders = [file.parent for file in files]
    return {f"{f.parent.name}/{f.name}": read_manifest(f)["digest"] for f in folders}


def code_commit() -> str:
    """The commit of the checkout, `-dirty` behind it when the code differs, "unknown" outside one."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed.strip() else commit
