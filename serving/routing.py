"""Which release answers whom, and the watch over a candidate: the part of `recommend` that changes while it serves.

    routing = Routing(state_folder, log=print)         starts a thread that follows routes.json and blocklist.json
    now = routing.now                                   one immutable view for all of a batch: no answer mixes two
    write_routes(state, Routes(...))                    the controller's side; `acknowledged` tells who follows it

Files in the state folder, each written whole and renamed: routes.json (controller), blocklist.json (controller),
ack/<instance> (each `recommend` instance: the epoch it serves), aborted/<release> (an instance that took a candidate
out, with the reason).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.config import Rollout
from serving.route import Route

POLL_S = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """The release folders that serve. `epoch` grows with every change."""

    epoch: int
    production: str
    candidate: str = ""
    rollout: Rollout


def write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    staged.write_bytes(data)
    os.replace(staged, path)


def write_routes(state: Path, routes: Routes) -> None:
    write_atomic(state / "routes.json", json.dumps(dataclasses.asdict(routes)).encode())


def read_routes(state: Path) -> Routes:
    raw = json.loads((state / "routes.json").read_text())
    return Routes(**raw | {"rollout": Rollout(**raw["rollout"])})


def acknowledged(state: Path) -> list[int]:
    """The epochs that the instances of `recommend` serve."""
    return [int(file.read_text()) for file in (state / "ack").glob("[!.]*")]


def aborted(state: Path, release_id: str) -> str | None:
    """Why a candidate was taken out, None if it was not."""
    file = state / "aborted" / release_id
    return file.read_text() if file.is_file() else None


class Guard:
    """Counts what a candidate did on real requests and says when it must go."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout, self.seen, self.illegal = rollout, 0, 0
        self._bad: deque[bool] = deque(maxlen=rollout.window)
        self._own: deque[float] = deque(maxlen=rollout.window)
        self._production: deque[float] = deque(maxlen=rollout.window)

    def production(self, seconds: float) -> None:
        self._production.append(seconds)

    def candidate(self, seconds: float, *, failed: bool, empty: bool, illegal: int) -> str | None:
        """Count one request; the reason to abort, if there is one now. Illegal items need no second look.

        `empty`: it had no item where production had some for the same request.
        """
        self.seen += 1
        self.illegal += illegal
        self._bad.append(failed or empty)
        self._own.append(seconds)
        if illegal:
            return f"{illegal} items of one answer were not legal"
        if self.seen < self.rollout.min_requests:
            return None
        if (bad := 100 * sum(self._bad) / len(self._bad)) > self.rollout.max_bad_percent:
            return f"{bad:.1f} % of {len(self._bad)} requests failed, or came back empty where production's did not"
        if len(self._production) >= self.rollout.min_requests:
            own, other = float(np.mean(self._own)), float(np.mean(self._production))
            if own > self.rollout.max_slowdown * other:
                return f"its model takes {1000 * own:.1f} ms, production's {1000 * other:.1f} ms"
        return None


@dataclasses.dataclass(frozen=True)
class View:
    """Everything a batch needs, fixed for that batch."""

    epoch: int
    production: Route
    candidate: Route | None
    rollout: Rollout
    guard: Guard
    blocked: np.ndarray

    def canary(self, user_id: int) -> bool:
        """The same users as long as the candidate is the same one; another candidate draws others."""
        return self.candidate is not None and _share(user_id, self.candidate.release_id) < self.rollout.canary_percent


def _share(user_id: int, salt: str) -> float:
    digest = hashlib.blake2b(f"{salt}/{user_id}".encode(), digest_size=8).digest()
    return 100 * int.from_bytes(digest, "big") / 2**64


class Routing:
    """Follows the state folder. The first view is loaded before the constructor returns (and its errors raised).

    Later files that do not load are logged once and the view stays what it is: the old release goes on.
    """

    def __init__(self, state: Path, instance: str, log: Callable[[str], object]) -> None:
        self._state, self._instance, self._log = state, instance, log
        self._routes: dict[str, Route] = {}
        self._stamps: tuple[int, int] = (0, 0)
        self._stop = threading.Event()
        self.taken_out: set[str] = set()
        self.now: View
        self._stamps = self._stamp()
        self._load(first=True)
        self._thread = threading.Thread(target=self._watch, name="routing", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def abort(self, release_id: str, reason: str) -> None:
        """Take the candidate out now; the controller finds the file and unloads it."""
        view = self.now
        if view.candidate is None or view.candidate.release_id != release_id:
            return
        self.now = dataclasses.replace(view, candidate=None)
        self.taken_out.add(release_id)
        self._log(f"candidate {release_id} taken out: {reason}")
        write_atomic(self._state / "aborted" / release_id, reason.encode())

    def _stamp(self) -> tuple[int, int]:
        return _mtime(self._state / "routes.json"), _mtime(self._state / "blocklist.json")

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            if (stamp := self._stamp()) != self._stamps:
                self._stamps = stamp
                try:
                    self._load()
                except Exception as error:
                    self._log(
                        f"routes not taken over, serving on with release {self.now.production.release_id}: {error}"
                    )

    def _load(self, first: bool = False) -> None:
        routes = read_routes(self._state)
        wanted = [folder for folder in (routes.production, routes.candidate) if folder]
        loaded = {folder: self._routes.get(folder) or Route.load(Path(folder)) for folder in wanted}
        production = loaded[routes.production]
        candidate = loaded.get(routes.candidate)
        if candidate is not None and aborted(self._state, candidate.release_id) is not None:
            candidate = None
        blocked = _blocked(self._state / "blocklist.json")
        same = not first and candidate is not None and candidate is self.now.candidate
        same = same and routes.rollout == self.now.rollout
        guard = self.now.guard if same else Guard(routes.rollout)
        self.now = View(routes.epoch, production, candidate, routes.rollout, guard, blocked)
        self._routes = loaded
        write_atomic(self._state / "ack" / self._instance, str(routes.epoch).encode())


def _mtime(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _blocked(file: Path) -> np.ndarray:
    try:
        return np.array(json.loads(file.read_text())["items"], np.int64)
    except FileNotFoundError:
        return np.zeros(0, np.int64)


def wait_acknowledged(state: Path, epoch: int, instances: int, timeout_s: float) -> None:
    """Until all instances serve `epoch` or a later one. Raises RuntimeError after the time."""
    deadline = time.monotonic() + timeout_s
    while len([e for e in acknowledged(state) if e >= epoch]) < instances:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"`recommend` did not take over the routes of epoch {epoch} within {timeout_s:g} s;"
                " the server's log has the reason, and the old release goes on"
            )
        time.sleep(0.02)
