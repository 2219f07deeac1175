"""One step runs once, is reused while nothing changed, and is whole or absent whenever it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kfp_components.step import LOG_NOTE, Outcome, run_step
from kfp_components.workspace import OUTCOME, Workspace

DAY = "2022-05-05"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=str(tmp_path), source="logs")


def write(text: str = "x", metrics: dict | None = None, calls: list | None = None):
    def body(out: Path, progress) -> dict:
        if calls is not None:
            calls.append(out)
        progress("half way 1/2")
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)
        return metrics or {"n": 1}

    return body


def step(workspace: Workspace, name: str = "tokenize", **more) -> Outcome:
    base = {"day": DAY, "inputs": [], "rooms": ("releases",), "settings": {"seed": 0}, "body": write()}
    return run_step(workspace=workspace, step=name, **{**base, **more})


def events(workspace: Workspace) -> list[tuple[str, str]]:
    return [(e["step"], e["event"]) for e in map(json.loads, workspace.progress(DAY).read_text().splitlines())]


def test_runs_once_and_is_reused_after(workspace) -> None:
    calls: list = []
    first = step(workspace, body=write(calls=calls))
    again = step(workspace, body=write(calls=calls))
    assert len(calls) == 1 and not first.reused and again.reused
    assert again.digest == first.digest and again.metrics == {"n": 1} and again.path == first.path
    assert (first.path / "sub" / "file.txt").read_text() == "x"
    assert [e for _, e in events(workspace)] == ["started", "progress", "done", "reused"]


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"seed": 1}},
        {"rooms": ("releases", "serving")},
        {"day": "2022-05-06"},
        {"fresh": True},
        {"state": [Path("/nowhere/store")]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_again_when_something_changed(workspace, change) -> None:
    step(workspace)
    assert not step(workspace, **change).reused


def test_runs_again_when_an_input_has_other_contents(workspace) -> None:
    one = step(workspace, "pathways", body=write("one"))
    assert not step(workspace, inputs=[one]).reused
    same = step(workspace, "pathways", body=write("one"), fresh=True)
    assert step(workspace, inputs=[same]).reused, "equal contents of another run are the same input"
    other = step(workspace, "pathways", body=write("two"), fresh=True)
    assert not step(workspace, inputs=[other]).reused


def test_runs_again_when_a_file_is_gone_or_cut(workspace) -> None:
    found = step(workspace)
    (found.path / "sub" / "file.txt").write_text("")
    assert not step(workspace).reused
    (found.path / "sub" / "file.txt").unlink()
    assert not step(workspace).reused
    assert step(workspace).reused


def test_files_outside_belong_to_the_outcome(workspace) -> None:
    table = workspace.lake / "impressions" / "dt=2022-05-05" / "part-0.parquet"

    def body(out: Path, progress) -> dict:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_bytes(b"rows")
        return {"tables": [str(table)]}

    def run(body=body) -> Outcome:
        return step(workspace, "ingest", body=body, outside=lambda m: [Path(t) for t in m["tables"]])

    first = run()
    assert list(first.outside) == ["lake/impressions/dt=2022-05-05/part-0.parquet"] and run().reused
    table.write_bytes(b"row")
    assert not run().reused

    def killed(out: Path, progress) -> dict:
        table.write_bytes(b"ROWS")  # the same size: only the missing outcome can tell
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        step(workspace, "ingest", body=killed, outside=lambda m: [table], fresh=True)
    assert not run().reused, "the old outcome must not vouch for files that a dead run rewrote"


def test_the_digest_knows_contents_and_neither_times_nor_metrics(workspace) -> None:
    first = step(workspace, body=write(metrics={"seconds": 1.5}))
    again = step(workspace, body=write(metrics={"seconds": 2.5}), fresh=True)
    assert again.digest == first.digest and again.metrics != first.metrics
    assert step(workspace, body=write("y"), fresh=True).digest != first.digest


def test_an_error_is_logged_told_and_raised_and_leaves_nothing(workspace) -> None:
    def body(out: Path, progress) -> dict:
        (out / "half.txt").write_text("half")
        raise ValueError("column item_id is missing: add it")

    with pytest.raises(ValueError, match="item_id") as caught:
        step(workspace, body=body)
    log = workspace.log(DAY, "tokenize")
    assert caught.value.__notes__ == [f"{LOG_NOTE}{log}"]
    last = json.loads(workspace.progress(DAY).read_text().splitlines()[-1])
    assert last["event"] == "failed" and last["error"] == "column item_id is missing: add it" and last["user"] is True
    assert last["log"] == str(log) and not workspace.step_dir(DAY, "tokenize").exists()
    assert not step(workspace).reused, "the next run does the work"


def test_a_failure_keeps_the_whole_outcome_of_before(workspace) -> None:
    first = step(workspace)

    def body(out: Path, progress) -> dict:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        step(workspace, body=body, settings={"seed": 1})
    assert step(workspace).reused and Outcome.read(first.path).digest == first.digest


def test_metrics_must_be_json_without_nan(workspace) -> None:
    with pytest.raises(ValueError):
        step(workspace, body=write(metrics={"loss": float("nan")}))
    assert not workspace.outcome(DAY, "tokenize").exists()


KILLED = """
    import sys, time
    from pathlib import Path
    from kfp_components.step import run_step
    from kfp_components.workspace import Workspace

    def body(out, progress):
        (out / "a.bin").write_bytes(b"x" * 1000)
        print("ready", flush=True)
        time.sleep(60)
        return {}

    run_step(workspace=Workspace(root=sys.argv[1], source="logs"), day="2022-05-05", step="tokenize", inputs=[],
             rooms=("releases",), settings={"seed": 0}, body=body)
"""


def test_killed_in_the_middle_nothing_is_visible_and_the_next_run_clears_up(workspace, tmp_path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    days = workspace.step_dir(DAY, "tokenize").parent
    assert not workspace.step_dir(DAY, "tokenize").exists()
    assert [p.name[:10] for p in days.iterdir()] == [".tokenize-"]
    assert not step(workspace).reused
    assert sorted(p.name for p in days.iterdir()) == ["tokenize"]


def test_peak_memory_and_time_are_measured(workspace) -> None:
    def body(out: Path, progress) -> dict:
        block = bytearray(200 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.8)
        return {"size": len(block)}

    found = step(workspace, body=body)
    assert found.peak_mib > 200 and found.seconds >= 0.8


def test_an_unreadable_outcome_is_named(workspace) -> None:
    found = step(workspace)
    (found.path / OUTCOME).write_text("{")
    with pytest.raises(ValueError, match=r"unreadable.*run from step tokenize"):
        Outcome.read(found.path)
    with pytest.raises(ValueError, match="holds no outcome; run the day from step align"):
        Outcome.read(workspace.step_dir(DAY, "align"))
    assert not step(workspace).reused
