"""Forgetting: every kind of file, nobody else's rows, and no way back through an ingest."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_kuairand import DAYS, KuaiRandFiles

from datasets.errors import DataError
from datasets.forget import mentions, rewrite, search
from datasets.ingest import ingest
from datasets.partitions import read_manifest, sha256, write_partition
from datasets.tombstones import FILE, Tombstones

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
USER = 42


def fill(root: Path) -> None:
    """A file of each kind; each holds the user, and others that look alike."""
    table = pa.table({"user_id": [41, USER, 421, None], "item_id": [USER, 1, 2, 3]})
    write_partition(root / "t" / "dt=1", table, counts={"late": 2}, extra_files={"quarantine.parquet": table}, zone="x")
    pq.write_table(table, root / "plain.parquet")
    (root / "users.json").write_text(json.dumps({"users": [{"user_id": USER, "n": 1}, {"user_id": 7}], "n": USER}))
    (root / "events.jsonl").write_text('{"user_id": 42}\n{"user_id": 7, "text": "for user 42"}\n{"item_id": 42}\n')
    (root / "a.log").write_text("user 42 was served\nuser_id=42, User: 42!\n42 users; user 421; item 42; user 42.5\n")
    (root / "w.safetensors").write_bytes(b"user 42")


def test_each_kind_of_file_loses_the_user_and_nobody_else(tmp_path) -> None:
    fill(tmp_path)
    found = {str(p.relative_to(tmp_path)): n for p, n in search(tmp_path, USER).items()}
    assert found == {
        "t/dt=1/part-0.parquet": 1,
        "t/dt=1/quarantine.parquet": 1,
        "plain.parquet": 1,
        "users.json": 2,  # as an object, and as text
        "events.jsonl": 3,
        "a.log": 3,
    }
    for path in search(tmp_path, USER):
        rewrite(path, USER)
    assert search(tmp_path, USER) == {}
    for name in ("t/dt=1/part-0.parquet", "t/dt=1/quarantine.parquet", "plain.parquet"):
        kept = pq.read_table(tmp_path / name, partitioning=None)
        assert kept.to_pydict() == {"user_id": [41, 421, None], "item_id": [USER, 2, 3]}
    assert json.loads((tmp_path / "users.json").read_text()) == {"users": [{"user_id": 7}], "n": USER}
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == [{"user_id": 7, "text": "for user [forgotten]"}, {"item_id": 42}]
    assert (tmp_path / "a.log").read_text().endswith("\n42 users; user 421; item 42; user 42.5\n")


def test_a_partition_stays_one(tmp_path) -> None:
    fill(tmp_path)
    before = read_manifest(tmp_path / "t" / "dt=1")
    rewrite(tmp_path / "t" / "dt=1" / "part-0.parquet", USER)
    now = read_manifest(tmp_path / "t" / "dt=1")
    assert now["rows"] == before["rows"] - 1 and now["counts"] == {"late": 2} and now["zone"] == "x"
    assert now["forgotten"] == 2 and now["digest"] != before["digest"]
    assert all(sha256(tmp_path / "t" / "dt=1" / f["path"]) == f["sha256"] for f in now["files"])


def test_a_file_without_the_user_is_not_touched(tmp_path) -> None:
    fill(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for path in before:
        assert mentions(path, 5000) == 0 and rewrite(path, 5000) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_no_ingest_brings_a_forgotten_user_back(files: KuaiRandFiles, tmp_path: Path) -> None:
    source, lake = files.write(tmp_path / "s"), tmp_path / "base" / "lake"

    def users() -> set:
        ingest(source=source, day=DAYS[1], lake=lake, bootstrap=True, progress=lambda _: None)
        tables = [
            pq.read_table(f, columns=["user_id"], partitioning=None)
            for f in lake.rglob("*.parquet")
            if "items" not in str(f)
        ]
        return {user for table in tables for user in table["user_id"].to_pylist()}

    whole = users()
    gone = min(user for user in whole if user is not None)
    Tombstones.read(lake.parent).add([gone], NOW).write(lake.parent)
    assert users() == whole - {gone}


def test_tombstones_name_nobody_keep_their_first_time_and_change_nothing_when_there_are_none(tmp_path) -> None:
    none = Tombstones.read(tmp_path)
    assert (none.digest(), none.without("SELECT 1"), USER in none) == ("", "SELECT 1", False)
    none.add([USER], NOW).write(tmp_path)
    later = Tombstones.read(tmp_path).add([USER, 7], NOW + dt.timedelta(days=1))
    assert USER in later and 7 in later and 8 not in later
    assert sorted(later.hashes.values()) == ["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"]
    assert "42" not in json.loads((tmp_path / FILE).read_text())["hashes"]


def test_damaged_tombstones_stop_the_ingest(files: KuaiRandFiles, tmp_path: Path) -> None:
    (tmp_path / "tombstones").mkdir()
    (tmp_path / FILE).write_text("{")
    with pytest.raises(DataError, match="forgotten users would come back"):
        ingest(source=files.write(tmp_path / "s"), day=DAYS[1], lake=tmp_path / "lake", bootstrap=True, progress=print)
