"""Partitions are whole or absent: writers killed at each stage, replacement under the eyes of a reader, digests."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import date
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import DataError
from datasets.partitions import MANIFEST, PART, partition_days, read_manifest, sha256, write_partition

OLD, NEW = pa.table({"x": [1, 2]}), pa.table({"x": [3]})

KILLED = """
import os, sys
from pathlib import Path
import pyarrow as pa
from datasets import partitions

moment = sys.argv[2]
def die(*arguments, **more):
    os._exit(9)
if moment == "sha256":  # after the data file is written
    partitions.sha256 = die
elif moment == "_flush":  # after the first bytes
    partitions._flush = die
else:  # everything written, not yet renamed
    partitions.replace_folder = die
partitions.write_partition(Path(sys.argv[1]), pa.table({"x": [3]}))
"""


def kill_at(moment: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], cwd=Path(__file__).parents[2])
    assert done.returncode == 9


@pytest.mark.parametrize("moment", ["_flush", "sha256", "replace_folder"])
def test_a_killed_writer_leaves_the_old_partition_whole(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "t" / "dt=2022-05-05"
    before = write_partition(path, OLD)
    kill_at(moment, path)
    assert read_manifest(path) == before
    assert pq.read_table(path / PART, partitioning=None).equals(OLD)
    assert partition_days(tmp_path / "t") == [date(2022, 5, 5)]


@pytest.mark.parametrize("moment", ["_flush", "sha256", "replace_folder"])
def test_a_killed_first_write_is_invisible_and_the_next_clears_it_away(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "t" / "dt=2022-05-05"
    kill_at(moment, path)
    assert not path.exists() and partition_days(tmp_path / "t") == []
    assert list((tmp_path / "t").iterdir())  # the hidden leftover
    write_partition(path, NEW)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["dt=2022-05-05"]


def test_a_reader_sees_the_old_or_the_new_partition_never_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "dt=2022-05-05"
    write_partition(path, OLD)
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            # A folder is replaced by one exchange: whoever opened it once reads one version.
            if not (path / MANIFEST).exists() or not (path / PART).exists():
                torn.append("absent")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        write_partition(path, (OLD, NEW)[number % 2])
    stop.set()
    reader.join()
    assert torn == []


def test_digest_follows_the_rows_and_the_extra_files_only(tmp_path: Path) -> None:
    first = write_partition(tmp_path / "a", OLD, counts={"n": 1}, note="x")
    second = write_partition(tmp_path / "b", OLD, counts={"n": 2}, note="y")
    assert first["digest"] == second["digest"] and first["counts"] != second["counts"]
    assert write_partition(tmp_path / "c", NEW)["digest"] != first["digest"]
    more = write_partition(tmp_path / "d", OLD, extra_files={"quarantine.parquet": NEW})
    assert more["digest"] != first["digest"]
    for entry in more["files"]:
        assert sha256(tmp_path / "d" / entry["path"]) == entry["sha256"]


def test_replacing_drops_files_that_the_new_partition_has_not(tmp_path: Path) -> None:
    write_partition(tmp_path / "p", OLD, extra_files={"quarantine.parquet": NEW})
    write_partition(tmp_path / "p", OLD)
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == [MANIFEST, PART]


def test_absent_and_broken_manifests_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no partition t/dt=2022-05-05 .* run the ingest of that day"):
        read_manifest(tmp_path / "t" / "dt=2022-05-05")
    write_partition(tmp_path / "p", OLD)
    (tmp_path / "p" / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"is not JSON .* run the ingest of that day again"):
        read_manifest(tmp_path / "p")


@pytest.mark.parametrize("cuts", [[0], [1, 5, 5], [131_071, 131_073], [200_000]])
def test_a_table_in_pieces_is_the_same_partition(cuts: list[int], tmp_path: Path) -> None:
    rows = pa.table({"x": pa.array(range(300_000), pa.int64())})
    ends = [0, *cuts, len(rows)]
    pieces = (rows.slice(a, b - a) for a, b in pairwise(ends))
    whole = write_partition(tmp_path / "whole", rows)
    assert write_partition(tmp_path / "pieces", pieces) == whole
    assert pq.read_table(tmp_path / "pieces" / PART, partitioning=None).equals(rows)
    assert pq.ParquetFile(tmp_path / "pieces" / PART).metadata.num_row_groups == 3


def test_a_partition_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    empty = pa.schema([("x", pa.int64())]).empty_table()
    assert write_partition(tmp_path / "none", iter([empty]))["rows"] == 0
    assert pq.read_schema(tmp_path / "none" / PART).names == ["x"]
