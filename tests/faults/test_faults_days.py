"""Faults of a day's data and of the processes that make it. Table: docs/faults.md (see tests/faults/fault.py).

This file is long because it is a list: one function a fault, each readable by itself.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault import cases, fault

from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.partitions import read_manifest, write_partition
from datasets.simulator import simulate
from datasets.staging import RECORD, expired, stage, swap, units_changed
from datasets.tombstones import FILE
from kfp_components.digest import REPOSITORY
from kfp_components.lock import held
from kfp_components.step import Outcome, run_step
from kfp_components.workspace import OUTCOME, Workspace

DAY = "2022-05-05"
TINY = Path(__file__).with_name("tiny_pipeline.py")


def python(code: str, **more) -> subprocess.Popen:
    """A process of its own that runs `code` in the repository."""
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def tiny(tmp_path: Path, text: str = "good", *more: str, day: str = DAY) -> subprocess.Popen:
    """The features pipeline of a day, tiny, on a log with this text."""
    data = tmp_path / "logs"
    data.mkdir(exist_ok=True)
    (data / f"{day}.txt").write_text(text)
    command = [sys.executable, str(TINY), "--pipeline", "features", "--day", day, "--data", str(data)]
    command += ["--root", str(tmp_path / "var"), "--source", "s", *more]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=str(tmp_path / "var"), source="s")


def rows(w: Workspace, day: str = DAY) -> tuple[list[int], set[str]]:
    table = pq.read_table(w.partition("impressions", day), partitioning=None)
    return table["user_id"].to_pylist(), set(table["text"].to_pylist())


def until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def step(w: Workspace, body, name: str = "align") -> Outcome:
    return run_step(workspace=w, day=DAY, step=name, inputs=[], rooms=("datasets/errors.py",), settings={}, body=body)


def write_good(out: Path, progress) -> dict:
    (out / "model.txt").write_text("whole")
    return {}


@fault(area="data", injection="SIGKILL in the middle of a partition's rows, the old partition in place",
       expected="readers see the old partition; the rerun writes the new one and clears what was left")  # fmt: skip
def task_killed_mid_write(tmp_path: Path) -> str:
    assert tiny(tmp_path, "old").wait(60) == 0
    process = tiny(tmp_path, "slow")
    until(lambda: (tmp_path / "logs" / f"{DAY}.writing").exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    w = workspace(tmp_path)
    assert rows(w) == ([1, 2, 3], {"old"})
    left = len(list(w.lake.glob("impressions/.*")))
    assert left and tiny(tmp_path, "new").wait(60) == 0
    assert rows(w) == ([1, 2, 3], {"new"}) and not list(w.lake.glob("impressions/.*"))
    return f"old rows whole, {left} hidden folder cleared"


@fault(area="data", injection="SIGKILL of the reader of a pipeline (Airflow's worker) while a step writes",
       expected="the pipeline ends by itself, nothing half is visible, the lock is free")  # fmt: skip
def worker_killed(tmp_path: Path) -> str:
    data, root = tmp_path / "logs", tmp_path / "var"
    data.mkdir()
    (data / f"{DAY}.txt").write_text("slow")
    command = [sys.executable, str(TINY), "--pipeline", "features", "--day", DAY, "--data", str(data)]
    command += ["--root", str(root), "--source", "s"]
    code = f"import subprocess; p = subprocess.Popen({command!r}, stdout=subprocess.PIPE, env={{'PYTHONPATH': '.'}})\n"
    worker = python(code + "print(p.pid, flush=True); p.wait()")
    assert worker.stdout is not None
    pipeline = psutil.Process(int(worker.stdout.readline()))
    until(lambda: (data / f"{DAY}.writing").exists())
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    pipeline.wait(60)
    w = workspace(tmp_path)
    assert not w.partition("impressions", DAY).exists()
    with held(w.base / ".pipeline.lock", "the next run"):
        return "the pipeline was gone, the lock free"


@fault(area="data", injection="the file size limit of the process is reached in the middle of a write (as a full disk is)",
       expected="the error is raised, the old partition is whole, nothing is left beside it")  # fmt: skip
def disk_full_in_a_partition(tmp_path: Path) -> str:
    path = tmp_path / "t" / "dt=1"
    write_partition(path, pa.table({"user_id": [1]}))
    code = f"""
import os, signal, pyarrow as pa
from pathlib import Path
from datasets.partitions import write_partition
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write_partition(Path({str(path)!r}), pa.table({{"user_id": list(os.urandom(1 << 20))}}))
"""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # noqa: E731
    process = python(code, preexec_fn=limit)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "OSError" in error, error
    assert pq.read_table(path, partitioning=None)["user_id"].to_pylist() == [1] and read_manifest(path)["rows"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["dt=1"]
    return error.strip().splitlines()[-1].split(":")[0] + ", old partition whole"


@fault(area="data", injection="the file size limit is reached while a step writes its outcome",
       expected="the step fails by name, leaves no outcome, and the rerun makes it")  # fmt: skip
def disk_full_in_a_step(tmp_path: Path) -> str:
    w = workspace(tmp_path)

    def body(out: Path, progress) -> dict:
        old, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
            (out / "weights.bin").write_bytes(bytes(1 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, ignored)
        return {}

    with pytest.raises(OSError):
        step(w, body)
    assert not w.outcome(DAY, "align").exists()
    last = json.loads(w.progress(DAY).read_text().splitlines()[-1])
    assert last["event"] == "failed" and "File too large" in last["error"]
    assert step(w, write_good).whole() and not list(w.step_dir(DAY, "align").parent.glob(".align-*"))
    return "failed by name, then made whole"


@fault(area="data", injection="two processes run the same day at once, neither waits",
       expected="one is refused and names the other; rows are there once")  # fmt: skip
def two_runs_of_one_day(tmp_path: Path) -> str:
    first = tiny(tmp_path, "slow")
    until(lambda: (tmp_path / "logs" / f"{DAY}.writing").exists())
    second = tiny(tmp_path, "slow")
    assert second.wait(60) == 1
    progress = workspace(tmp_path).progress(DAY).read_text()
    assert "is at work here" in progress
    (tmp_path / "logs" / f"{DAY}.txt").write_text("done")
    assert first.wait(60) == 0 and rows(workspace(tmp_path))[0] == [1, 2, 3]
    return "the second was refused, 3 rows"


@fault(area="data", injection="a second run of the day comes while the first works, and waits for it (as Airflow's do)",
       expected="it goes on when the first is done and reuses every step")  # fmt: skip
def two_runs_that_wait(tmp_path: Path) -> str:
    first = tiny(tmp_path, "slow")
    until(lambda: (tmp_path / "logs" / f"{DAY}.writing").exists())
    second = tiny(tmp_path, "slow", "--wait-s", "60")
    (tmp_path / "logs" / f"{DAY}.txt").write_text("done")
    said, _ = second.communicate(timeout=90)
    assert first.wait(60) == 0 and second.returncode == 0, said
    assert rows(workspace(tmp_path))[0] == [1, 2, 3]
    return "both ended well, 3 rows"


@fault(area="data", injection="a day's log lost a column (real simulated Parquet, real ingest)",
       expected="stops naming file and column; the lake is as it was; mended, the day runs")  # fmt: skip
def poisoned_log(tmp_path: Path) -> str:
    source, lake = tmp_path / "source", tmp_path / "lake"
    simulate(source, days=2, end=date(2026, 1, 2), users=20, items=30, impressions=200, progress=lambda _: None)
    file = next((source / "impressions" / "dt=2026-01-02").glob("*.parquet"))
    whole, day = file.read_bytes(), date(2026, 1, 2)
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["item_id"]), file)
    with pytest.raises(DataError, match="item_id") as caught:
        ingest(source=source, day=day, lake=lake, bootstrap=True, progress=lambda _: None)
    assert not lake.exists() or not list(lake.rglob("*.parquet"))
    file.write_bytes(whole)
    assert ingest(source=source, day=day, lake=lake, bootstrap=True, progress=lambda _: None)["tables"]
    return f"{type(caught.value).__name__} names item_id"


@fault(area="data", injection="a Parquet file of the lake is cut off in the middle, its outcome intact",
       expected="the outcome is not reused, the step is run again")  # fmt: skip
def truncated_partition(tmp_path: Path) -> str:
    assert tiny(tmp_path, "good").wait(60) == 0
    w = workspace(tmp_path)
    file = w.partition("impressions", DAY)
    file.write_bytes(file.read_bytes()[:100])
    assert not Outcome.read(w.step_dir(DAY, "ingest")).whole()
    assert tiny(tmp_path, "good").wait(60) == 0
    assert rows(w) == ([1, 2, 3], {"good"})
    return "made again, rows whole"


@fault(area="data", injection="an _outcome.json holds half of its bytes",
       expected="it is taken for no outcome and named; the step is run again")  # fmt: skip
def half_an_outcome(tmp_path: Path) -> str:
    w = workspace(tmp_path)
    step(w, write_good)
    file = w.outcome(DAY, "align")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="is unreadable"):
        Outcome.read(w.step_dir(DAY, "align"))
    assert not step(w, write_good).reused and step(w, write_good).reused
    return "named, then made again once"


@fault(area="data", injection="the manifest of a partition is damaged",
       expected="reading it stops and names the folder to delete and the day to run")  # fmt: skip
def damaged_manifest(tmp_path: Path) -> str:
    write_partition(tmp_path / "t" / "dt=1", pa.table({"user_id": [1]}))
    (tmp_path / "t" / "dt=1" / "_manifest.json").write_text('{"rows": 1')
    with pytest.raises(DataError, match="delete .*dt=1 and run the ingest of that day again"):
        read_manifest(tmp_path / "t" / "dt=1")
    return "named with its mend"


@fault(area="data", injection="the day asked for has no log yet; it arrives later",
       expected="stops naming the days there are, writes nothing; with the log the day runs")  # fmt: skip
def late_upstream_day(tmp_path: Path) -> str:
    source, lake, day = tmp_path / "source", tmp_path / "lake", date(2026, 1, 2)
    simulate(source, days=2, end=day, users=20, items=30, impressions=200, progress=lambda _: None)
    late = source / "impressions" / "dt=2026-01-02"
    late.rename(tmp_path / "late")
    with pytest.raises(DataError, match="2026-01-01"):
        ingest(source=source, day=day, lake=lake, bootstrap=True, progress=lambda _: None)
    assert not list(tmp_path.rglob("lake/**/*.parquet"))
    (tmp_path / "late").rename(late)
    ingest(source=source, day=day, lake=lake, bootstrap=True, progress=lambda _: None)
    return "refused by name, then ingested"


@fault(area="data", injection="the address space of a step's process is limited below what it allocates",
       expected="the step fails by name, leaves no outcome; the day before it is untouched")  # fmt: skip
def out_of_memory(tmp_path: Path) -> str:
    w = workspace(tmp_path)
    code = f"""
import resource
from pathlib import Path
import numpy as np
from kfp_components.step import run_step
from kfp_components.workspace import Workspace
def body(out, progress):
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    (out / "model.txt").write_text("half")
    return {{"sum": float(np.ones(1 << 30).sum())}}
run_step(workspace=Workspace(root={w.root!r}, source="s"), day={DAY!r}, step="align", inputs=[],
         rooms=("datasets/errors.py",), settings={{}}, body=body)
"""
    process = python(code)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "MemoryError" in error, error
    assert not w.outcome(DAY, "align").exists()
    assert "Unable to allocate" in json.loads(w.progress(DAY).read_text().splitlines()[-1])["error"]
    assert step(w, write_good).whole()
    return "MemoryError told, no outcome, rerun whole"


@fault(area="data", injection="the kernel's out-of-memory kill of a step: SIGKILL while it holds a half-written folder",
       expected="no outcome; the rerun clears the folder and makes the step")  # fmt: skip
def out_of_memory_kill(tmp_path: Path) -> str:
    w = workspace(tmp_path)
    code = f"""
import os, signal
from kfp_components.step import run_step
from kfp_components.workspace import Workspace
def body(out, progress):
    (out / "model.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
run_step(workspace=Workspace(root={w.root!r}, source="s"), day={DAY!r}, step="align", inputs=[],
         rooms=("datasets/errors.py",), settings={{}}, body=body)
"""
    process = python(code)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not w.outcome(DAY, "align").exists()
    days = w.step_dir(DAY, "align").parent
    assert list(days.glob(".align-*"))
    assert (step(w, write_good).path / "model.txt").read_text() == "whole" and not list(days.glob(".align-*"))
    return "half folder cleared, made whole"


@fault(area="data", injection="the machine's clock is a year ahead, then a year behind, while partitions are written",
       expected="the bytes are the same: no clock is in them; what was kept does not expire early")  # fmt: skip
def clock_skew(tmp_path: Path) -> str:
    digests = set()
    for name, shift in (("now", 0), ("ahead", 365), ("behind", -365)):
        code = f"""
import time
real = time.time
time.time = lambda: real() + {shift} * 86400
import pyarrow as pa
from pathlib import Path
from datasets.partitions import write_partition
print(write_partition(Path({str(tmp_path / name / "t" / "dt=1")!r}), pa.table({{"user_id": [1, 2]}}))["digest"])
"""
        said, error = python(code).communicate(timeout=60)
        assert said, error
        digests.add(said.strip())
    now = dt.datetime.now(dt.UTC)
    for name, at in (("ahead", now + dt.timedelta(days=365)), ("fresh", now)):
        (tmp_path / "kept" / name).mkdir(parents=True)
        (tmp_path / "kept" / name / RECORD).write_text(json.dumps({"at": at.isoformat(), "units": []}))
    assert len(digests) == 1 and expired(tmp_path / "kept", now=now) == []
    return "one digest for three clocks, nothing expired"


@fault(area="data", injection="SIGKILL in the middle of the swap of a backfill (after its first exchange)",
       expected="the next call finishes it: all new partitions live, all old ones kept, none swapped back")  # fmt: skip
def swap_killed(tmp_path: Path) -> str:
    live, staging, kept = tmp_path / "live", tmp_path / "staging", tmp_path / "kept"
    for n in range(3):
        write_partition(live / "lake" / "t" / f"dt={n}", pa.table({"user_id": [n]}))
    stage(live, staging)
    for n in range(3):
        write_partition(staging / "lake" / "t" / f"dt={n}", pa.table({"user_id": [n + 10]}))
    code = f"""
import datetime as dt, os, signal
from pathlib import Path
from datasets import staging as room
real = room.replace_folder
def once(old, new):
    real(old, new)
    os.kill(os.getpid(), signal.SIGKILL)
room.replace_folder = once
live, staging, kept = Path({str(live)!r}), Path({str(staging)!r}), Path({str(kept)!r})
room.swap(live, staging, room.units_changed(live, staging), kept, now=dt.datetime.now(dt.UTC))
"""
    process = python(code)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    swap(live, staging, units_changed(live, staging), kept, now=dt.datetime.now(dt.UTC))

    def values(base: Path) -> list[int]:
        return [
            pq.read_table(f, partitioning=None)["user_id"][0].as_py()
            for f in sorted(base.glob("lake/t/dt=*/*.parquet"))
        ]

    assert (values(live), values(kept)) == ([10, 11, 12], [0, 1, 2])
    return "3 new live, 3 old kept"


@fault(area="data", injection="SIGKILL of the holder of a workspace's lock",
       expected="the kernel frees it: the next run is not blocked by a stale lock")  # fmt: skip
def lock_holder_dies(tmp_path: Path) -> str:
    lock = tmp_path / "lock"
    code = "from pathlib import Path; import time\nfrom kfp_components.lock import held\n"
    process = python(code + f"with held(Path({str(lock)!r}), 'x'):\n    print('held', flush=True); time.sleep(60)")
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="x .process .* is at work here"), held(lock, "y"):
        pass
    process.kill()
    process.wait()
    with held(lock, "y"):
        return "refused while it lived, free after"


@fault(area="data", injection="the file of tombstones is damaged",
       expected="no ingest runs: it would bring forgotten people back; the message says to restore it")  # fmt: skip
def damaged_tombstones(tmp_path: Path) -> str:
    source = tmp_path / "source"
    simulate(source, days=2, end=date(2026, 1, 2), users=20, items=30, impressions=200, progress=lambda _: None)
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text("{")
    with pytest.raises(DataError, match="forgotten users would come back"):
        ingest(source=source, day=date(2026, 1, 2), lake=tmp_path / "lake", bootstrap=True, progress=lambda _: None)
    assert not list(tmp_path.rglob("lake/**/*.parquet"))
    return "stopped, nothing written"


@fault(area="data", injection="validation fails on the second day of three, days run in order",
       expected="the third stops and names the missing day; after the mend both run, each once")  # fmt: skip
def poisoned_day_stops_its_successors(tmp_path: Path) -> str:
    days = ["2022-05-03", "2022-05-04", "2022-05-05"]
    w = workspace(tmp_path)
    assert [tiny(tmp_path, text, day=d).wait(60) for d, text in zip(days, ["a", "poison", "c"])] == [0, 1, 1]
    assert w.days_with("materialize") == days[:1] and "missing 2022-05-04" in w.progress(days[2]).read_text()
    assert [tiny(tmp_path, text, day=d).wait(60) for d, text in zip(days, "abc")] == [0, 0, 0]
    assert [rows(w, d)[1] for d in days] == [{"a"}, {"b"}, {"c"}] and OUTCOME
    return "successor refused, then all three"


test_fault = cases(__name__)
