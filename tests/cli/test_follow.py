"""What a person sees while a day runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from cli.follow import Follower, bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def progress(tmp_path: Path) -> Path:
    path = tmp_path / "progress.jsonl"
    path.write_text(
        json.dumps({"step": "ingest", "event": "failed", "at": 1.0, "error": "old", "log": "", "user": True})
    )
    path.write_text(path.read_text() + "\n")
    return path


def tell(path: Path, step: str, event: str, at: float = 100.0, **more) -> None:
    with open(path, "a") as f:
        f.write(json.dumps({"step": step, "event": event, "at": at, **more}) + "\n")


def test_one_line_a_step_with_time_and_memory(progress) -> None:
    out = io.StringIO()
    follower = Follower(progress, out)
    tell(progress, "ingest", "reused", seconds=3.0)
    tell(progress, "pretrain", "started")
    tell(progress, "pretrain", "done", seconds=83.4, peak_mib=1536.2)
    follower.poll()
    assert out.getvalue().splitlines() == [
        "ingest          0:00  reused (took 0:03 when it ran)",
        "pretrain        1:23  done, 1,536 MiB at most",
    ]
    assert follower.finished == {"ingest": "reused", "pretrain": "done"} and follower.failure is None


def test_a_line_written_half_is_read_when_it_is_whole(progress) -> None:
    follower = Follower(progress, io.StringIO())
    line = json.dumps({"step": "ingest", "event": "reused", "at": 1.0, "seconds": 1.0}) + "\n"
    with open(progress, "a") as f:
        f.write(line[:20])
        f.flush()
        follower.poll()
        assert follower.finished == {}
        f.write(line[20:])
    follower.poll()
    assert follower.finished == {"ingest": "reused"}


def test_a_bar_for_counts_only() -> None:
    assert bar("step 6/24  loss 3.1") == "[######..................] "
    assert bar("day 24/24") == f"[{'#' * 24}] " and bar("release 2022") == "" and bar("0/0") == ""


def test_without_a_terminal_progress_is_sparse_plain_lines(progress) -> None:
    out = io.StringIO()
    follower = Follower(progress, out)
    tell(progress, "pretrain", "started", at=100.0)
    for second in range(25):
        tell(progress, "pretrain", "progress", at=100.0 + second, text=f"step {second}/24")
    follower.poll()
    assert [line.split()[-1] for line in out.getvalue().splitlines()] == ["10/24", "20/24"]
    assert "\r" not in out.getvalue()


def test_on_a_terminal_the_line_moves_in_place(progress) -> None:
    out = Terminal()
    follower = Follower(progress, out)
    tell(progress, "pretrain", "started")
    tell(progress, "pretrain", "progress", text="step 12/24")
    follower.poll()
    assert out.getvalue().count("\n") == 0 and "[############............] step 12/24" in out.getvalue()
    tell(progress, "pretrain", "done", seconds=1.0, peak_mib=1.0)
    follower.poll()
    assert out.getvalue().endswith("\r\033[Kpretrain        0:01  done, 1 MiB at most\n")


def test_a_run_that_ended_without_a_word_is_blamed_on_its_running_step(progress, tmp_path) -> None:
    log = tmp_path / "airflow.log"
    log.write_text("many\nlines\nKilled\n")
    follower = Follower(progress, io.StringIO())
    tell(progress, "align", "started")
    follower.poll()
    failure = follower.cut_off(log)
    assert failure.step == "align" and "was cut off" in failure.error and "Killed" in failure.error
    tell(progress, "align", "done", seconds=1.0, peak_mib=1.0)
    follower.poll()
    assert follower.cut_off(log).step == "ingest", "the first step that did not end"
