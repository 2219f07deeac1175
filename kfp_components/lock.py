"""One writer at a time: a lock file that the kernel frees when its holder dies, so that no stale lock ever blocks.

with held(Path("var/.daily.lock"), "onerec daily 2022-05-05"):
    ...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock for the block. ValueError says who holds it when somebody else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise ValueError(
                f"{f.read().strip() or 'another process'} is at work here; wait for it or end it (lock: {path})"
            ) from None
        f.truncate(0)
        f.write(f"{what} (process {os.getpid()})\n")
        f.flush()
        yield
