"""One writer at a time: a lock file that the kernel frees when its holder dies, so that no stale lock ever blocks.

with held(Path("var/.daily.lock"), "onerec daily 2022-05-05"):
    ...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.5


@contextlib.contextmanager
def held(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock for the block. ValueError says who holds it when somebody else does, after `wait_s` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, told = time.monotonic() + wait_s, False
    with open(path, "a+") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                f.seek(0)
                who = f.read().strip() or "another process"
                if time.monotonic() >= deadline:
                    raise ValueError(f"{who} is at work here; wait for it or end it (lock: {path})") from None
                if not told:
                    print(f"waiting for {who} (lock: {path})", flush=True)
                told = True
                time.sleep(POLL_S)
        f.truncate(0)
        f.write(f"{what} (process {os.getpid()})\n")
        f.flush()
        yield
