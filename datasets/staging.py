"""Work beside the live folders and swap: a backfill never writes where somebody reads.

    stage(live, staging)                            a copy that costs nothing: large files are hard links
    changed = units_changed(live, staging)          the partitions, step outcomes and releases that became others
    swap(live, staging, changed, kept)              each exchanged in one system call; the old ones are kept

A unit is a folder (a partition, the outcome of a step, a release) or a file that is only ever replaced as a whole. A
swap that was killed goes on: the journal holds the inode of each new unit, so that it is known on which side it lies.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from datasets.errors import DataError
from datasets.partitions import replace_folder

ROOMS = ("lake", "features", "days", "store", "refits", "feature_store", "tombstones")
LINKED = (".parquet", ".safetensors", ".npy")  # only ever replaced, never written in place
UNITS = ("lake/*/dt=*", "lake/history", "features/*/dt=*", "days/*/*", "store/releases/*", "store/gates/*.json")
JOURNAL, RECORD = "swap.json", "replaced.json"
KEPT_DAYS = 30


def stage(live: Path, staging: Path) -> None:
    """Make `staging` a copy of the rooms of a workspace: large immutable files linked, all others copied.

    A staging that is there already is left as it is: it is being resumed. One that was cut off while it was made is
    made anew.
    """
    if staging.is_dir():
        return
    half = staging.with_name(f".{staging.name}.making")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for room in ROOMS:
        if (live / room).is_dir():
            shutil.copytree(live / room, half / room, copy_function=_link_or_copy, ignore=_hidden)
    staging.parent.mkdir(parents=True, exist_ok=True)
    half.rename(staging)


def units_changed(live: Path, staging: Path) -> list[str]:
    """The units of the staging that are not those of the live workspace, relative to both, in order."""
    found = {str(path.relative_to(staging)) for pattern in UNITS for path in staging.glob(pattern)}
    return sorted(unit for unit in found if not _same(live / unit, staging / unit))


def swap(live: Path, staging: Path, units: Iterable[str], kept: Path, *, now: dt.datetime) -> list[str]:
    """Exchange the units; what was live before lies in `kept` afterwards, with a record of what and when.

    Killed at any point it is called again with the same arguments and finishes: the first call's list counts.
    """
    journal = staging / JOURNAL
    if not journal.is_file():
        plan = {unit: (staging / unit).stat().st_ino for unit in units}
        _write(kept / RECORD, {"at": now.isoformat(timespec="seconds"), "units": sorted(plan)})
        _write(journal, plan)
    plan = json.loads(journal.read_text())
    for unit, inode in plan.items():
        new, old = live / unit, staging / unit
        if not (new.exists() and new.stat().st_ino == inode):
            new.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(old, new)
        if old.exists():  # what was live until now
            (kept / unit).parent.mkdir(parents=True, exist_ok=True)
            old.rename(kept / unit)
    return sorted(plan)


def undo(live: Path, kept: Path, *, now: dt.datetime) -> list[str]:
    """Bring the replaced units back; what replaced them is kept in their place. Units that were new stay.

    DataError when the folder holds no replaced units.
    """
    if not (kept / RECORD).is_file():
        raise DataError(f"{kept} holds no replaced partitions: give the name of a backfill (its folder in .replaced)")
    units = [unit for unit in json.loads((kept / RECORD).read_text())["units"] if (kept / unit).exists()]
    back = kept.with_name(f"{kept.name}.undone")
    done = swap(live, kept, units, back, now=now)
    shutil.rmtree(kept)
    return done


def expired(replaced: Path, *, now: dt.datetime, days: int = KEPT_DAYS) -> list[Path]:
    """The folders of replaced units that have been kept for long enough.

    By the time in their record, not by the file system's clock; one from the future (a clock that was wrong) stays.
    """
    found = []
    for record in sorted(replaced.glob(f"*/{RECORD}")):
        at = dt.datetime.fromisoformat(json.loads(record.read_text())["at"])
        if now - at > dt.timedelta(days=days):
            found.append(record.parent)
    return found


def _same(one: Path, other: Path) -> bool:
    if one.is_dir() != other.is_dir() or not one.exists():
        return False
    if one.is_file():
        return one.read_bytes() == other.read_bytes()
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    if files != sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file()):
        return False
    return all(_same_file(one / name, other / name) for name in files)


def _same_file(one: Path, other: Path) -> bool:
    if one.stat().st_ino == other.stat().st_ino:
        return True
    return one.suffix not in LINKED and one.read_bytes() == other.read_bytes()


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(LINKED):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _hidden(folder: str, names: list[str]) -> list[str]:
    """What a killed write left behind, and locks, are nobody's."""
    return [name for name in names if name.startswith(".")]


def _write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.tmp")
    with open(staged, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
