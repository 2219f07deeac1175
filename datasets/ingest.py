"""Ingest: bring the log days of a source into the lake as contract tables, by fixed rules for bad input.

    ingest(source=Path("kuairand-pure"), day=date(2022, 5, 5), lake=Path("lake"), bootstrap=True)

| met in the source | what happens | counted as |
|---|---|---|
| no folder, unknown layout | stop, naming the known layouts | |
| missing column, other encoding, empty or cut file | stop, naming the file and the line | |
| line with too few or too many columns, value of another type | stop, naming the file, the line and the value | |
| day before the first or after the last log day | stop, naming the days there are | |
| zero rows for the day, or none that can be used | stop, naming the days there are | |
| exact copy of a row (in all contract columns) | drop | duplicates |
| same user, item and time as another row, other values | keep the longest play, quarantine | conflicting_duplicate |
| same user, item and time as a row of the log day before | quarantine | repeats_day_before |
| user or item id missing or negative | quarantine | no_id |
| time stamp missing | quarantine | no_time |
| late: the event is up to 6 h older than the log day it came with | keep, in the partition of that log day | late |
| too late: the event is older than that | quarantine | too_late |
| the event is up to 6 h younger than its log day | keep, in the partition of its log day | ahead_of_day |
| the event is younger than that | quarantine | too_far_ahead |
| out of order: the event is older than the row before it in the source | keep, sorted by time | out_of_order |
| play time negative | keep, play time null | play_time_negative |
| play time over 100 times the duration | keep, play time null | play_time_too_long |
| duration zero or negative | keep, duration null | duration_not_positive |
| label that is not 0 or 1 | keep, label null | label_not_binary |
| user that the feature files do not know | keep, added to users with nulls | unknown_user |
| item that the feature files do not know | keep, added to items with author -1 | unknown_item |
| item without an author | keep, author -1 | author_missing |

Quarantined rows lie unchanged in `quarantine.parquet` of the partition, with the reason. So
rows_read = duplicates + quarantined + kept, in every partition (tested). The same source gives the same digests.

A partition holds what arrived with its log day; a late row never changes the partition of an older day, which training
has already seen. To bring back rows that were too late, put them into the log of their own day and backfill that day.

A source is read in two streams, one for its days and one that stages the wanted days; then a day at a time is judged
and written. Memory stays under `memory_mib` beside a fixed rest; what does not fit spills into a temporary folder
beside the lake, which needs about the disk space of the wanted days as Parquet, twice.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb

from datasets.adapters import detect
from datasets.adapters.base import Adapter
from datasets.errors import DataError
from datasets.lake import Lake, spell
from datasets.partitions import alive

MEMORY_MIB = 3072

_UNREADABLE = (
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.InvalidTypeException,
    duckdb.IOException,
    duckdb.OutOfRangeException,
)
"""What DuckDB raises for a damaged file or a value of another type that the adapter let pass."""


def ingest(
    *,
    source: Path,
    day: date,
    lake: Path,
    bootstrap: bool,
    progress: Callable[[str], None] = print,
    adapter: Adapter | None = None,
    memory_mib: int = MEMORY_MIB,
) -> dict[str, Any]:
    """Write the day (bootstrap: every log day up to it, and the untimed history) and the day after, if there is one.

    The day after is for evaluation only; items and users are those known at the end of `day`. `adapter`: of the
    source, if it is not to be told by its file names. `memory_mib`: of DuckDB. Raises DataError, and writes nothing,
    for a source that cannot be used. Returns the adapter, the days, and each table's rows, digest and counts.
    """
    adapter = adapter or detect(source)
    lake.parent.mkdir(parents=True, exist_ok=True)
    for left in lake.parent.glob(f".{lake.name}.ingest-*"):
        if not alive(int(left.name.split("-")[1])):  # a killed run's
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{lake.name}.ingest-{os.getpid()}-", dir=lake.parent) as scratch:
        config: dict[str, Any] = {"memory_limit": f"{memory_mib}MiB", "temp_directory": f"{scratch}/spill"}
        with duckdb.connect(config=config) as con:
            con.execute("SET TimeZone = 'UTC'")
            con.execute("SET enable_progress_bar = false")
            try:
                known = adapter.days(con)
                wanted = _wanted(source, known, day, bootstrap)
                following = [d for d in known if d == day + timedelta(days=1)]
                run = Lake(con, adapter, lake, day, progress, Path(scratch) / "staged")
                tables = run.write(known, wanted, following, bootstrap)
            except duckdb.OutOfMemoryException as error:
                raise DataError(
                    f"{memory_mib} MiB of memory or the free disk of {lake.parent} do not suffice for {source}: "
                    f"{str(error).splitlines()[0]}. Raise memory_mib or free some disk"
                ) from error
            except _UNREADABLE as error:
                adapter.explain(con)
                text = str(error).splitlines()[0]
                raise DataError(
                    f"source {source} ({adapter.name}) cannot be read: {text}. Mend the file or the type"
                ) from error
    evaluation = [d for d in following if f"impressions/dt={d}" in tables]
    return {
        "adapter": adapter.name,
        "timezone": adapter.timezone,
        "days": [d.isoformat() for d in wanted],
        "evaluation_day": evaluation[0].isoformat() if evaluation else None,
        "tables": tables,
        "counts": _totals(tables, evaluation),
    }


def _wanted(source: Path, known: list[date], day: date, bootstrap: bool) -> list[date]:
    """The log days to write. Raises DataError if the source has not the day."""
    if not known:
        raise DataError(f"{source} has no log rows at all: copy the log again")
    if not known[0] <= day <= known[-1]:
        raise DataError(
            f"day {day} is out of the range of {source}, which has {spell(known)}: ask for one of these days"
        )
    if day not in known:
        raise DataError(f"{source} has no rows for {day}; it has rows for {spell(known)}: ask for one of these days")
    return [d for d in known if d <= day] if bootstrap else [day]


def _totals(tables: dict[str, dict[str, Any]], evaluation: list[date]) -> dict[str, int]:
    """Counts summed over the impressions up to the day; those of the other tables stand under `<table>.<rule>`."""
    totals: dict[str, int] = {}
    for name, entry in tables.items():
        table, _, dt = name.partition("/dt=")
        if table == "impressions" and dt in [d.isoformat() for d in evaluation]:
            continue
        prefix = "" if table == "impressions" else f"{table}."
        for rule, count in entry["counts"].items():
            totals[prefix + rule] = totals.get(prefix + rule, 0) + count
    return totals
