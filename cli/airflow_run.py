"""Airflow for one run on this machine: its home with SQLite, its settings, and a process tree that can be ended.

home = prepare(Path("var"))
with start(home, day_command("2022-05-05", conf), log) as process: ...
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from kfp_components.digest import REPOSITORY, digest_file
from kfp_components.ending import end_tree

AIRFLOW = "ONEREC_AIRFLOW"  # environment variable: the airflow command, if it is not the one in .venv/orchestrate
DAY_DAGS = ("onerec_features", "onerec_tokenizer", "onerec_training", "onerec_release")
_PR_SET_PDEATHSIG = 1


def settings(home: Path) -> dict[str, str]:
    """The environment of every Airflow process: SQLite, our DAGs only, nothing that listens beyond this machine."""
    ours = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # Here the API shares the cores with what trains: with the default of 5 s a busy machine fails tasks unbegun.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "120",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "ONEREC_ML_PYTHON": os.environ.get("ONEREC_ML_PYTHON", sys.executable),
        "PYTHONPATH": str(REPOSITORY / "dags"),  # the triggerer and the callbacks import our operators too
    }
    binaries = f"{airflow().parent}:{os.environ.get('PATH', '')}"
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW") and k not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return {**kept, **ours, "PATH": binaries}


def airflow() -> Path:
    """The airflow command of the `orchestrate` environment; ValueError says how to get it."""
    path = Path(os.environ.get(AIRFLOW) or REPOSITORY / ".venv" / "orchestrate" / "bin" / "airflow")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run `make setup`, or set {AIRFLOW} to the airflow command")
    return path


def prepare(root: Path) -> Path:
    """Airflow's home below `root`, with its database; made once for a set of locked versions."""
    home = (root / "airflow").resolve()
    home.mkdir(parents=True, exist_ok=True)
    lock = REPOSITORY / "locks" / "orchestrate.txt"
    wanted, stamp = digest_file(lock) if lock.is_file() else "unlocked", home / ".migrated"
    if stamp.is_file() and stamp.read_text() == wanted and (home / "airflow.db").is_file():
        return home
    print("airflow       preparing its database, once")
    done = subprocess.run([str(airflow()), "db", "migrate"], env=settings(home), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"airflow db migrate failed; remove {home} and try again:\n{done.stdout}{done.stderr}")
    stamp.write_text(wanted)
    return home


def import_pools(home: Path) -> None:
    """The pools of the DAGs into Airflow's database, once for a version of their file."""
    pools = REPOSITORY / "dags" / "pools.json"
    wanted, stamp = digest_file(pools), home / ".pools"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    command = [str(airflow()), "pools", "import", str(pools)]
    done = subprocess.run(command, env=settings(home), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"airflow pools import {pools} failed:\n{done.stdout}{done.stderr}")
    stamp.write_text(wanted)


def day_command(day: str, conf: Mapping[str, Any]) -> list[str]:
    """The DAGs of a day in a row, in one process of the `orchestrate` environment."""
    python = airflow().with_name("python")
    return [str(python), str(REPOSITORY / "cli" / "airflow_day.py"), day, *DAY_DAGS, "--conf", json.dumps(conf)]


@contextlib.contextmanager
def start(
    home: Path, command: list[str], log: Path, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """A command of the orchestrate environment, output in `log`. However the block ends, its tree ends too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**settings(home), **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            end_tree(process.pid)
            process.wait()


def tree_memory(pid: int) -> int:
    """Resident memory in bytes of a process and its descendants; shared pages count once for each."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
