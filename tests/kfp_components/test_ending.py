"""No process of a run outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from kfp_components.digest import REPOSITORY
from kfp_components.ending import end_tree


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_dead(pids: list[int], seconds: float = 40.0) -> list[int]:
    """Those that still live after the time; they are killed."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


# A component as KFP starts it: below a shell, with a server of its own in a session of its own (as Triton is).
COMPONENT = """
    import os, subprocess, time
    from kfp_components.ending import end_with_reader

    end_with_reader()
    server = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        print("component", os.getpid(), server.pid, flush=True)
        time.sleep(300)
    finally:
        server.terminate()
"""
PIPELINE = """
    import os, subprocess, sys
    from kfp_components.ending import end_with_reader

    end_with_reader(children_first=True)
    command = ["sh", "-ec", '"$0" -c "$1"; true', sys.executable, sys.argv[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print("pipeline", os.getpid(), process.pid, line, end="", flush=True)
"""


def start_pipeline() -> tuple[subprocess.Popen, list[int]]:
    command = [sys.executable, "-c", textwrap.dedent(PIPELINE), textwrap.dedent(COMPONENT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    words = process.stdout.readline().split()
    return process, [int(word) for word in words if word.isdigit()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_killed_pipeline_takes_components_and_their_servers_along(number) -> None:
    process, pids = start_pipeline()
    assert len(pids) == 4 and all(map(alive, pids))
    process.send_signal(number)
    process.wait(timeout=40)
    shell = pids[1]  # killed outright, a pipeline leaves the shell to end by itself when its component has
    assert wait_until_dead([p for p in pids if p != shell]) == [] and wait_until_dead([shell]) == []
    process.stdout.close()


def test_a_pipeline_ends_when_its_reader_is_gone() -> None:
    process, pids = start_pipeline()
    process.stdout.close()
    assert wait_until_dead(pids) == [] and process.wait() == 143


def test_a_tree_ends_whatever_sessions_it_is_in_and_however_deaf(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; setsid sleep 300 & echo $! > {pids}.tmp; mv {pids}.tmp {pids}; sleep 300"
    top = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    while not pids.exists():
        time.sleep(0.02)
    end_tree(top.pid, grace_s=0.5)
    top.wait()
    assert wait_until_dead([int(pids.read_text())], 1.0) == []
