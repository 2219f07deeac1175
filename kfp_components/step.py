"""One step of a day: runs its body once, keeps the outcome, and is reused while its key stays the same.

    outcome = run_step(workspace=w, day="2022-05-05", step="tokenize", inputs=[...], body=..., ...)

The key covers the outcome digests of the inputs, the settings, the code of the rooms the step calls and the locked
environment. The body writes into a temporary folder that is renamed into place with `_outcome.json` inside: a killed
step leaves nothing visible. An outcome's digest covers the bytes of its files only, never times: equal results of
different runs have equal digests, and what comes after them is reused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import shutil
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from kfp_components.digest import code_digest, digest_file, digest_value, environment_locks
from kfp_components.workspace import OUTCOME, Workspace

Body = Callable[[Path, Callable[[str], None]], Mapping[str, Any]]
LOG_NOTE = "log of the step: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step left. `files` lie in `path`, `outside` elsewhere in the workspace: name -> size and sha256.

    `digest` covers them; metrics, times and memory stand beside it.
    """

    step: str
    day: str
    key: str
    digest: str
    inputs: dict[str, str]
    files: dict[str, dict[str, Any]]
    outside: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    seconds: float
    peak_mib: float
    started_at: str
    ended_at: str
    path: Path = Path()
    reused: bool = False

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """Of a step folder; ValueError names the folder when the step did not run or its outcome is unreadable."""
        try:
            raw = json.loads((folder / OUTCOME).read_text())
            return cls(**raw, path=folder)
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no outcome; run the day from step {folder.name}") from None
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / OUTCOME} is unreadable ({error}); run from step {folder.name}") from None

    def whole(self) -> bool:
        """Do the files it lists still exist with their sizes?"""
        base = self.path.parent.parent.parent  # <base>/days/<day>/<step>
        entries = [(self.path / n, f) for n, f in self.files.items()] + [(base / n, f) for n, f in self.outside.items()]
        return all(p.is_file() and p.stat().st_size == f["size"] for p, f in entries)


def run_step(
    *,
    workspace: Workspace,
    day: str,
    step: str,
    inputs: Sequence[Outcome],
    rooms: Sequence[str],
    settings: Mapping[str, Any],
    body: Body,
    outside: Callable[[Mapping[str, Any]], list[Path]] | None = None,
    state: Sequence[Path] = (),
    fresh: bool = False,
) -> Outcome:
    """Run `body(out, progress) -> metrics`, or reuse what it left; `fresh` runs it whatever it left.

    `settings` and the metrics must be JSON. `outside(metrics)` names files that the body wrote elsewhere in the
    workspace (lake, features, releases), which then belong to the outcome. `state` are folders or files that the step
    keeps up to date and that must exist for a reuse, but whose bytes tell nothing (a database). The error of the body
    is raised again after it was logged, with a note that names the log.
    """
    names = {f"{o.day}/{o.step}": o.digest for o in inputs}
    settings = json.loads(json.dumps(settings, default=str))
    code = {"code": code_digest(*rooms), "locks": environment_locks()}
    key = digest_value({"inputs": names, "settings": settings, **code, "step": step, "day": day})
    target, events = workspace.step_dir(day, step), Events(workspace.progress(day), step)
    found = None if fresh else _reusable(target, key)
    if found is not None and all(p.exists() for p in state):
        events.write("reused", seconds=found.seconds)
        print(f"{step}: reused")
        return found
    # Only one process runs a day, so what lies beside the target was left by a killed one.
    for left in target.parent.glob(f".{step}-*"):
        shutil.rmtree(left)
    if outside is not None:
        # Killed while it rewrites files that the old outcome vouches for, the step must not be taken for done.
        (target / OUTCOME).unlink(missing_ok=True)
    stage = target.parent / f".{step}-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    started, clock = _now(), time.monotonic()
    events.write("started")
    with _log(workspace.log(day, step)) as log, PeakMemory() as memory:
        try:
            metrics = dict(body(stage, events.progress))
            metrics = json.loads(json.dumps(metrics, allow_nan=False))
        except BaseException as error:
            traceback.print_exc()
            events.failed(error, log)
            error.add_note(f"{LOG_NOTE}{log}")
            raise
    files = {str(p.relative_to(stage)): _entry(p) for p in sorted(stage.rglob("*")) if p.is_file()}
    elsewhere = {os.path.relpath(p, workspace.base): _entry(p) for p in (outside(metrics) if outside else [])}
    outcome = Outcome(
        step=step,
        day=day,
        key=key,
        digest=digest_value({"step": step, "day": day, "files": files, "outside": elsewhere}),
        inputs=names,
        files=files,
        outside=elsewhere,
        metrics=metrics,
        seconds=round(time.monotonic() - clock, 2),
        peak_mib=round(memory.peak / 2**20, 1),
        started_at=started,
        ended_at=_now(),
    )
    raw = {k: v for k, v in dataclasses.asdict(outcome).items() if k not in ("path", "reused")}
    with open(stage / OUTCOME, "w") as f:
        json.dump(raw, f, indent=1, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    if target.exists():
        os.rename(target, target.parent / f".{step}-{uuid.uuid4().hex}")
    os.rename(stage, target)
    for left in target.parent.glob(f".{step}-*"):
        shutil.rmtree(left)
    events.write("done", seconds=outcome.seconds, peak_mib=outcome.peak_mib)
    return dataclasses.replace(outcome, path=target)


class Events:
    """Appends to the progress file; a line is written at once, so a reader sees whole lines only."""

    def __init__(self, path: Path, step: str) -> None:
        self.path, self.step = path, step
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, event: str, **more: Any) -> None:
        line = json.dumps({"step": self.step, "event": event, "at": time.time(), **more}) + "\n"
        with open(self.path, "a") as f:
            f.write(line)

    def failed(self, error: BaseException, log: Path) -> None:
        """`user` tells an error that the reader can mend from one of ours."""
        text = str(error).strip() or type(error).__name__
        user = isinstance(error, ValueError)
        self.write("failed", error=text if user else f"{type(error).__name__}: {text}", log=str(log), user=user)

    def progress(self, text: str) -> None:
        print(text, flush=True)
        self.write("progress", text=text)


class PeakMemory:
    """Highest sum of resident memory (bytes) of this process and its children while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak = max(self.peak, total)
            if self._stop.wait(0.3):
                return


def _reusable(target: Path, key: str) -> Outcome | None:
    try:
        found = Outcome.read(target)
    except ValueError:
        return None
    return dataclasses.replace(found, reused=True) if found.key == key and found.whole() else None


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": digest_file(path)}


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Path]:
    """Copy stdout and stderr of this process and its children into the log of the step as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 1), os.dup2(write, 2)
    os.close(write)

    def copy() -> None:
        with open(path, "wb") as log, open(read, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                log.write(chunk)
                log.flush()
                os.write(saved[0], chunk)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(saved[0], 1), os.dup2(saved[1], 2)
        # A child that outlives the step would hold the pipe open for ever.
        thread.join(timeout=5)
        for fd in saved:
            os.close(fd) if not thread.is_alive() else None
