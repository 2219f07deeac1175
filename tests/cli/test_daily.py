"""How a day fails and ends, with a script in Airflow's place (the whole day runs in tests/test_day_e2e.py)."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli.airflow_run import AIRFLOW, prepare
from cli.main import main
from kfp_components.digest import REPOSITORY
from kfp_components.lock import held

DAY = "2022-05-05"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


def stand_in(tmp_path: Path, monkeypatch, body: str) -> None:
    """`airflow` migrates to an empty database; the `python` beside it runs `body` for a day."""
    script = tmp_path / "airflow"
    (tmp_path / "python").write_text(f"#!/bin/bash\n{body}\n")
    (tmp_path / "python").chmod(0o755)
    migrate = 'echo once >> "$AIRFLOW_HOME/migrations"; touch "$AIRFLOW_HOME/airflow.db"'
    script.write_text(f'#!/bin/bash\nif [ "$1" = db ]; then {migrate}; exit 0; fi\nexit 9\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(AIRFLOW, str(script))


def daily(tmp_path: Path, logs: Path) -> list[str]:
    return ["daily", "--data", str(logs), "--date", DAY, "--root", str(tmp_path / "var")]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(path: Path, seconds: float = 30.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.read_text()


def test_a_failed_step_is_named_with_its_error_log_and_command(tmp_path, logs, monkeypatch, capsys) -> None:
    progress = tmp_path / "var" / "runs" / DAY / "progress.jsonl"
    event = '{"step": "validate", "event": "failed", "at": 1, "error": "item_id is null", "log": "L.log", "user": true}'
    stand_in(tmp_path, monkeypatch, f"echo '{event}' >> {progress}; exit 1")
    assert main(daily(tmp_path, logs)) == 1
    error = capsys.readouterr().err
    assert "FAILED at step validate: item_id is null\n  log    L.log\n  again  " in error and "Traceback" not in error
    command = shlex.split(error.split("again  ")[1].split("   (")[0])
    assert command[1:3] == ["daily", "--data"] and command[-2:] == ["--from", "validate"]
    assert command[command.index("--date") + 1] == DAY and command[command.index("--root") + 1] == str(tmp_path / "var")


def test_an_airflow_that_dies_is_a_failure_with_the_end_of_its_log(tmp_path, logs, monkeypatch, capsys) -> None:
    stand_in(tmp_path, monkeypatch, "echo cannot import dag; exit 1")
    assert main(daily(tmp_path, logs)) == 1
    error = capsys.readouterr().err
    assert "FAILED at step ingest: the step could not be started" in error and "cannot import dag" in error


def test_a_run_that_ends_well_but_skipped_steps_is_a_failure(tmp_path, logs, monkeypatch) -> None:
    stand_in(tmp_path, monkeypatch, "exit 0")
    assert main(daily(tmp_path, logs)) == 1


def test_airflow_gets_the_day_and_a_home_of_the_workspace_migrated_once(tmp_path, logs, monkeypatch) -> None:
    stand_in(tmp_path, monkeypatch, 'echo "$@" > "$AIRFLOW_HOME/called"; exit 1')
    for _ in range(2):
        main([*daily(tmp_path, logs), "--from", "align", "--seed", "3"])
    home = tmp_path / "var" / "airflow"
    called = (home / "called").read_text()
    chain = "onerec_features onerec_tokenizer onerec_training onerec_release"
    assert f"airflow_day.py {DAY} {chain} --conf " in called and '"fresh_from": "align"' in called
    assert '"wait_hours": 0' in called  # what is missing is told, not waited for
    assert '"seed": 3' in called and '"source": "logs"' in called
    assert (home / "migrations").read_text() == "once\n"


def test_without_the_orchestrate_environment_the_mend_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(AIRFLOW, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="none does not exist: run `make setup`"):
        prepare(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_killed_it_takes_the_whole_tree_along(tmp_path, logs, monkeypatch, number) -> None:
    """Also by SIGKILL: then Airflow's process gets a SIGTERM from the kernel."""
    pids = tmp_path / "pids"
    child = "" if number == signal.SIGKILL else "setsid sleep 300 &"
    stand_in(tmp_path, monkeypatch, f"{child} echo $$ $! > {pids}.tmp; mv {pids}.tmp {pids}; exec sleep 300")
    command = [sys.executable, "-m", "cli.main", *daily(tmp_path, logs)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tree = [int(pid) for pid in wait_for(pids).split()]
    try:
        process.send_signal(number)
        code = process.wait(timeout=60)
        deadline = time.monotonic() + 30
        while any(map(alive, tree)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, tree)) and code in (130, -signal.SIGKILL)
    finally:
        for pid in filter(alive, tree):
            os.kill(pid, signal.SIGKILL)


def test_only_one_daily_a_root(tmp_path, logs, capsys) -> None:
    with held(tmp_path / "var" / ".daily.lock", "onerec daily 2022-05-04"):
        assert main(daily(tmp_path, logs)) == 1
    assert "onerec daily 2022-05-04 (process " in capsys.readouterr().err


def test_the_lock_of_a_dead_process_blocks_nobody(tmp_path) -> None:
    lock = tmp_path / "lock"
    code = "import os\nfrom pathlib import Path\nfrom kfp_components.lock import held\n"
    code += f"with held(Path({str(lock)!r}), 'dead'):\n    os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 9
    assert "dead" in lock.read_text()
    with held(lock, "living"):
        assert lock.read_text() == f"living (process {os.getpid()})\n"
