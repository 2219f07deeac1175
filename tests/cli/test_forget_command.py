"""`onerec forget` and `onerec housekeeping` on a workspace with tables, outcomes, an online store and copies."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from cli.main import main
from datasets.partitions import write_partition
from datasets.staging import stage, swap, units_changed
from datasets.tombstones import Tombstones
from feature_repo.forget import forget_online
from feature_repo.online_rows import user_key
from feature_repo.profiles import LocalProfile
from feature_repo.store import apply
from kfp_components.digest import digest_file
from kfp_components.step import Outcome, run_step
from kfp_components.workspace import Workspace

DAY, USER = "2022-05-05", 777001
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def w(tmp_path: Path) -> Workspace:
    w = Workspace(root=str(tmp_path / "var"), source="logs")
    w.store.mkdir(parents=True)
    table = w.partition("impressions", DAY).parent

    def body(out: Path, progress) -> dict:
        write_partition(table, pa.table({"user_id": [USER, 2], "item_id": [1, 2]}))
        (out / "recommendations.json").write_text(json.dumps({"users": [{"user_id": USER}, {"user_id": 2}]}))
        progress(f"user {USER}: 10 items")
        return {}

    run_step(workspace=w, day=DAY, step="serve", inputs=[], rooms=("releases",), settings={}, body=body,
             outside=lambda _: [table / "part-0.parquet"])  # fmt: skip
    return w


@pytest.fixture
def online(w: Workspace) -> Path:
    """The real online store, with rows of the user and of another in two views."""
    from feast.infra.online_stores.helpers import get_online_store_from_config

    w.feature_store.mkdir(parents=True)
    apply(features=w.features, feature_store=w.feature_store, profile=LocalProfile())
    config = LocalProfile().repo_config(w.feature_store)
    store = get_online_store_from_config(config.online_store)
    for view in ("user_seen", "user_short"):
        store.put_rows(config, view, [(user_key(user), 1, b"row of %d" % user) for user in (USER, 2)])
    return Path(config.online_store.path)


def forget(w: Workspace, *more: str) -> int:
    return main(["forget", "--user", str(USER), "--root", w.root, "--source", "logs", *more])


def test_a_dry_run_names_the_files_and_changes_nothing(w, online, capsys) -> None:
    before = {p: p.read_bytes() for p in Path(w.root).rglob("*") if p.is_file() and "online" not in p.name}
    assert forget(w) == 0
    said = capsys.readouterr().out
    assert "impressions/dt=2022-05-05/part-0.parquet" in said and "2  rows in the online store" in said
    assert "nothing was removed" in said and USER not in Tombstones.read(w.base)
    assert {p: p.read_bytes() for p in before if ".pipeline.lock" not in str(p)} == {
        p: data for p, data in before.items() if ".pipeline.lock" not in str(p)
    }


def test_the_person_is_gone_from_tables_outcomes_logs_copies_and_the_online_file(w, online, capsys) -> None:
    copies = Path(w.root) / ".backfill" / "b" / "logs"
    stage(w.base, copies)
    assert forget(w, "--yes") == 0
    assert "is in none" in capsys.readouterr().out and USER in Tombstones.read(w.base)
    text = str(USER).encode()
    held = [p for p in Path(w.root).rglob("*") if p.is_file() and text in p.read_bytes() and p.suffix != ".parquet"]
    assert held == []
    key = user_key(USER)
    assert not any(key in file.read_bytes() for file in online.parent.glob("online.db*"))
    assert forget_online(w.feature_store, 2, dry_run=True) == 2
    outcome = Outcome.read(w.step_dir(DAY, "serve"))
    assert outcome.whole(), "a day that was whole stays whole"
    (entry,) = outcome.outside.values()
    assert entry["sha256"] == digest_file(w.partition("impressions", DAY))
    assert forget(w, "--yes") == 0  # again is safe


def test_a_negative_id_is_refused(w) -> None:
    assert main(["forget", "--user", "-1", "--root", w.root, "--source", "logs"]) == 1


def test_housekeeping_removes_what_expired_and_leaves_the_rest(w, capsys) -> None:
    copy = Path(w.root) / ".backfill" / "b" / "logs"
    stage(w.base, copy)
    write_partition(copy / "lake" / "impressions" / f"dt={DAY}", pa.table({"user_id": [5]}))
    old, new = w.base / ".replaced" / "old", w.base / ".replaced" / "new"
    swap(w.base, copy, units_changed(w.base, copy), old, now=dt.datetime.now(dt.UTC) - dt.timedelta(days=31))
    new.mkdir()
    (new / "replaced.json").write_text(json.dumps({"at": dt.datetime.now(dt.UTC).isoformat(), "units": []}))
    killed, living = w.base / "days" / DAY / ".align-1", w.base / "days" / DAY / ".align-2"
    for folder in (killed, living):
        folder.mkdir(parents=True)
    os.utime(killed, (time.time() - 2 * 86400,) * 2)
    where = ["--root", w.root, "--source", "logs"]
    assert main(["housekeeping", "--dry-run", *where]) == 0 and old.exists() and killed.exists()
    assert main(["housekeeping", *where]) == 0
    assert not old.exists() and not killed.exists() and new.exists() and living.exists() and copy.exists()
    assert f"removing {old}: replaced over 30 days ago" in capsys.readouterr().out
