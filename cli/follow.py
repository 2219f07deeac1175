"""Follow the progress file of a day: one line a step, a bar inside long steps, and what failed.

follower = Follower(workspace.progress(day)); follower.poll()     # again and again, while the run goes on
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from kfp_components.workspace import STEPS

BAR, QUIET_S = 24, 10.0  # cells of a bar; seconds between two progress lines when the output is no terminal
_COUNT = re.compile(r"(\d+)/(\d+)")


@dataclasses.dataclass(frozen=True)
class Failure:
    """The step that failed, its error for a person, its log, and whether the reader's input caused it."""

    step: str
    error: str
    log: str
    user: bool


class Follower:
    """Reads what was appended since it was made, and shows it."""

    def __init__(self, path: Path, out: TextIO | None = None) -> None:
        self.path, self.out = path, out or sys.stdout
        self.offset = path.stat().st_size if path.exists() else 0
        self.live = self.out.isatty()
        self.finished: dict[str, str] = {}  # step -> done | reused
        self.failure: Failure | None = None
        self.running: str | None = None
        self._started = self._said = 0.0
        self._text = ""

    def poll(self) -> None:
        """Show what is new; on a terminal also move the clock of the running step."""
        if self.path.exists():
            with open(self.path, "rb") as f:
                f.seek(self.offset)
                new = f.read()
            whole = new[: new.rfind(b"\n") + 1]
            self.offset += len(whole)
            for line in whole.splitlines():
                self._take(json.loads(line))
        if self.live and self.running:
            self._draw()

    def cut_off(self, log: Path) -> Failure:
        """The failure of a run that ended without a word: in its running step, or between two."""
        step = self.running or next((s for s in STEPS if s not in self.finished), STEPS[-1])
        what = "was cut off" if self.running else "could not be started"
        return Failure(step=step, error=f"the step {what}; the end of {log}:\n{_tail(log)}", log=str(log), user=False)

    def _take(self, event: dict[str, Any]) -> None:
        step, kind = event["step"], event["event"]
        if kind == "started":
            self.running, self._started, self._said, self._text = step, event["at"], event["at"], ""
        elif kind == "progress":
            self._text = event["text"]
            if not self.live and event["at"] - self._said >= QUIET_S:
                self._said = event["at"]
                self._print(f"{step:<12}  {clock(event['at'] - self._started)}  {bar(self._text)}{self._text}")
        elif kind == "done":
            self._finish(step, "done")
            self._print(f"{step:<12}  {clock(event['seconds'])}  done, {event['peak_mib']:,.0f} MiB at most")
        elif kind == "reused":
            self._finish(step, "reused")
            self._print(f"{step:<12}  {clock(0)}  reused (took {clock(event['seconds']).strip()} when it ran)")
        elif kind == "failed":
            self.running = None
            self.failure = Failure(step=step, error=event["error"], log=event["log"], user=event["user"])
            self._print(f"{step:<12}  FAILED")

    def _finish(self, step: str, how: str) -> None:
        self.running, self.finished[step] = None, how

    def _print(self, line: str) -> None:
        print(f"\r\033[K{line}" if self.live else line, file=self.out, flush=True)

    def _draw(self) -> None:
        line = f"{self.running:<12}  {clock(time.time() - self._started)}  {bar(self._text)}{self._text}"
        self.out.write(f"\r\033[K{line[:110]}")
        self.out.flush()


def bar(text: str) -> str:
    """A bar for the first `n/m` in the text, nothing without one."""
    found = _COUNT.search(text)
    if not found or not int(found[2]):
        return ""
    full = round(BAR * min(1.0, int(found[1]) / int(found[2])))
    return f"[{'#' * full}{'.' * (BAR - full)}] "


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"


def _tail(path: Path, lines: int = 15) -> str:
    text = path.read_text(errors="replace").splitlines() if path.exists() else ["(no log)"]
    return "\n".join(f"    {line}" for line in text[-lines:])
