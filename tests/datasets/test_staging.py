"""Staging and swap: free copies, exchange, a kill at every point, going back, and what expires."""

from __future__ import annotations

import datetime as dt
import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import staging as room
from datasets.errors import DataError
from datasets.partitions import write_partition
from datasets.staging import expired, stage, swap, undo, units_changed

NOW = dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
DAYS = [date(2026, 1, d) for d in (1, 2, 3)]


def write(base: Path, day: date, value: int) -> None:
    write_partition(base / "lake" / "impressions" / f"dt={day}", pa.table({"user_id": [value]}))
    step = base / "days" / str(day) / "ingest"
    step.mkdir(parents=True, exist_ok=True)
    (step / "_outcome.json").write_text(json.dumps({"value": value}))


def values(base: Path) -> list[int]:
    """The value of each day, which table and outcome must agree on."""
    found = []
    for day in DAYS:
        table = pq.read_table(base / "lake" / "impressions" / f"dt={day}" / "part-0.parquet", partitioning=None)
        outcome = json.loads((base / "days" / str(day) / "ingest" / "_outcome.json").read_text())
        assert table["user_id"].to_pylist() == [outcome["value"]]
        found.append(outcome["value"])
    return found


@pytest.fixture
def live(tmp_path: Path) -> Path:
    for i, day in enumerate(DAYS):
        write(tmp_path / "live", day, i)
    return tmp_path / "live"


@pytest.fixture
def staging(live: Path, tmp_path: Path) -> Path:
    stage(live, tmp_path / "staging")
    return tmp_path / "staging"


def test_a_staging_links_tables_copies_the_rest_and_is_another_s_business(live, staging) -> None:
    one = "lake/impressions/dt=2026-01-01/part-0.parquet"
    assert (live / one).stat().st_ino == (staging / one).stat().st_ino
    write(staging, DAYS[1], 10)
    (staging / "days" / str(DAYS[0]) / "ingest" / "_outcome.json").write_text('{"value": 5}')
    assert values(live) == [0, 1, 2]


def test_only_what_became_other_is_swapped_and_the_old_is_kept(live, staging, tmp_path) -> None:
    before = (live / "lake/impressions/dt=2026-01-01").stat().st_ino
    write(staging, DAYS[1], 11)
    changed = units_changed(live, staging)
    assert changed == ["days/2026-01-02/ingest", "lake/impressions/dt=2026-01-02"]
    kept = tmp_path / "kept" / "a"
    assert swap(live, staging, changed, kept, now=NOW) == changed
    assert values(live) == [0, 11, 2] and (live / "lake/impressions/dt=2026-01-01").stat().st_ino == before
    old = pq.read_table(kept / "lake/impressions/dt=2026-01-02/part-0.parquet", partitioning=None)
    assert old["user_id"].to_pylist() == [1]


@pytest.mark.parametrize("at", range(8))
def test_killed_at_any_point_the_swap_is_finished_by_the_next_call(live, staging, tmp_path, monkeypatch, at) -> None:
    """The process dies at its at-th change of the file system; nothing is lost, nothing swapped back."""
    for i, day in enumerate(DAYS[1:]):
        write(staging, day, 20 + i)
    left = [at]

    class Killed(BaseException):
        pass

    def counted(function):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    changed, kept = units_changed(live, staging), tmp_path / "kept" / "a"
    with monkeypatch.context() as patch:
        patch.setattr(room, "replace_folder", counted(room.replace_folder))
        patch.setattr(Path, "rename", counted(Path.rename))
        with pytest.raises(Killed):
            swap(live, staging, changed, kept, now=NOW)
    assert set(values_or_none(live)) <= {0, 1, 2, 20, 21}
    swap(live, staging, ["never", "looked", "at"], kept, now=NOW)
    assert values(live) == [0, 20, 21] and values_of(kept) == [1, 2]


def values_or_none(base: Path) -> list[int]:
    """Of the tables alone: in the middle of a swap they and the outcomes may be of different sides."""
    return [
        pq.read_table(f, partitioning=None)["user_id"][0].as_py() for f in sorted(base.glob("lake/*/dt=*/*.parquet"))
    ]


values_of = values_or_none


def test_going_back_brings_the_old_and_keeps_the_new(live, staging, tmp_path) -> None:
    write(staging, DAYS[2], 32)
    write(staging, date(2026, 1, 4), 99)  # a day that was not there before
    kept = tmp_path / "kept" / "a"
    swap(live, staging, units_changed(live, staging), kept, now=NOW)
    assert values(live) == [0, 1, 32]
    undo(live, kept, now=NOW)
    assert values(live) == [0, 1, 2] and values_of(tmp_path / "kept" / "a.undone") == [32] and not kept.exists()
    assert (live / "lake/impressions/dt=2026-01-04").is_dir()
    with pytest.raises(DataError, match="holds no replaced partitions"):
        undo(live, kept, now=NOW)


def test_a_resumed_staging_is_left_and_a_half_made_one_is_made_anew(live, staging, tmp_path) -> None:
    write(staging, DAYS[0], 7)
    stage(live, staging)
    assert values(staging)[0] == 7
    half = tmp_path / ".other.making"
    (half / "lake").mkdir(parents=True)
    (half / "lake" / "rubbish.json").write_text("{}")
    stage(live, tmp_path / "other")
    assert values(tmp_path / "other") == [0, 1, 2] and not (tmp_path / "other/lake/rubbish.json").exists()


def test_replaced_partitions_expire_by_their_record_and_never_with_a_clock_ahead(live, staging, tmp_path) -> None:
    write(staging, DAYS[0], 1)
    swap(live, staging, units_changed(live, staging), tmp_path / "kept" / "a", now=NOW)
    names = {d: [p.name for p in expired(tmp_path / "kept", now=NOW + dt.timedelta(days=d))] for d in (-400, 0, 29, 31)}
    assert names == {-400: [], 0: [], 29: [], 31: ["a"]}
