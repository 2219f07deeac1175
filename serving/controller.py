"""Follow the channels of a store: what `production` and `candidate` name is what the server serves.

    with TritonServer(...) as server, Controller(server, store, rollout=Rollout(canary_percent=5)):
        ...

Promote and rollback move a pointer; this is what carries the move into a running server. A release that is damaged or
does not load is refused, written to the log once, and the old one goes on. So does everything when the store is away.
What the candidate meets of the traffic says the store's rollout (releases/rollout.py); where there was never one,
`rollout` says it, which always holds the limits of the guard.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from releases.channels import read_channel
from releases.manifest import load_release
from releases.object_store import ObjectStore
from releases.rollout import read as read_rollout
from serving import blocklist
from serving.config import Rollout
from serving.routing import aborted, write_atomic
from serving.triton_server import NO_ROLLOUT, TritonServer

POLL_S = 0.5


class Controller:
    """A thread that compares the store with the server every `POLL_S` seconds. `step` does it once.

    `report` is a file that always says what is served, what was refused and why (JSON).
    """

    def __init__(
        self,
        server: TritonServer,
        store: ObjectStore,
        *,
        rollout: Rollout = NO_ROLLOUT,
        report: Path | None = None,
        log: Callable[[str], object] = print,
    ) -> None:
        self.server, self.store, self.rollout, self._report, self._log = server, store, rollout, report, log
        self._refused: dict[str, str] = {}
        self._blocked: list[int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def __enter__(self) -> Controller:
        self.step()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def step(self) -> None:
        """Bring the server to where the channels point, as far as that is possible."""
        blocked = blocklist.read(self.store).items
        if blocked != self._blocked:
            self.server.block(blocked)
            self._blocked = blocked
        production = self._wanted("production") or self.server.release
        candidate, rollout = self._candidate(production)
        serving = (self.server.release.resolve(), self.server.candidate and self.server.candidate.resolve())
        same = (production.resolve(), candidate and candidate.resolve()) == serving
        if same and rollout == self.server.rollout:
            return
        started = time.monotonic()
        try:
            self.server.switch(production, candidate, rollout)
        except RuntimeError as error:
            # Which of the two did not load? The new production release first, so that it is not held up.
            blamed = production if production.resolve() != serving[0] else candidate
            assert blamed is not None
            self._refuse(blamed.name, str(error))
            return
        seconds = time.monotonic() - started
        shares = f" (shadow {rollout.shadow_percent:g} %, canary {rollout.canary_percent:g} %)" if candidate else ""
        named = candidate.name if candidate else "none"
        self._log(f"serving {production.name}, candidate {named}{shares} ({seconds:.1f} s)")
        self._write_report()

    def _wanted(self, channel: str) -> Path | None:
        """The verified folder of a channel's release; None when there is none that may serve."""
        pointer = read_channel(self.store, channel)
        if pointer is None or pointer.release_id in self._refused:
            return None
        serving = {folder.name: folder for folder in (self.server.release, self.server.candidate) if folder}
        if pointer.release_id in serving:
            return serving[pointer.release_id]
        try:
            return load_release(self.store, pointer.release_id)[0]
        except ValueError as error:
            self._refuse(pointer.release_id, str(error))
            return None

    def _candidate(self, production: Path) -> tuple[Path | None, Rollout]:
        """The candidate that meets traffic, if one does, and how."""
        pointer = read_channel(self.store, "candidate")
        if pointer is None or pointer.release_id == production.name:
            return None, NO_ROLLOUT
        rollout = self._share(pointer.release_id)
        if not (rollout.canary_percent or rollout.shadow_percent):
            return None, NO_ROLLOUT
        if (candidate := self._wanted("candidate")) is None:
            return None, NO_ROLLOUT
        if (reason := aborted(self.server.state, candidate.name)) is not None:
            self._refuse(candidate.name, f"taken out while it met traffic: {reason}")
            return None, NO_ROLLOUT
        return candidate, rollout

    def _share(self, release_id: str) -> Rollout:
        """What a candidate gets of the traffic now: nothing while the store's rollout is of another release."""
        now = read_rollout(self.store)
        if now is None:
            return self.rollout
        mine = now.release_id == release_id
        shares = (now.shadow_percent, now.canary_percent) if mine else (0.0, 0.0)
        return dataclasses.replace(self.rollout, shadow_percent=shares[0], canary_percent=shares[1])

    def _refuse(self, release_id: str, reason: str) -> None:
        """Not tried again until the server restarts: releases never change, so the next try would end the same."""
        self._refused[release_id] = reason
        self._log(f"release {release_id} refused, serving on with {self.server.release.name}: {reason}")
        self._write_report()

    def _write_report(self) -> None:
        if self._report is not None:
            candidate = self.server.candidate.name if self.server.candidate else None
            found = {"production": self.server.release.name, "candidate": candidate, "refused": self._refused}
            write_atomic(self._report, (json.dumps(found, indent=1) + "\n").encode())

    def _run(self) -> None:
        quiet = ""
        while not self._stop.wait(POLL_S):
            try:
                self.step()
                quiet = ""
            except Exception as error:  # the store is away, or unreadable: what serves goes on serving
                if (text := f"{type(error).__name__}: {error}") != quiet:
                    self._log(f"the store cannot be followed, serving on with {self.server.release.name}: {text}")
                quiet = text
