"""Work that must not take the processor from what serves: loading a release beside the one that answers.

    program = at_low_priority(Program.load, folder, "cpu")

Priority on Linux belongs to a thread, and may be lowered by anybody but raised by none: so the work gets a thread of
its own, which ends with it. On two cores under half load, a release that loaded at full priority filled the queue.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")
STEPS, LOWEST = 10, 19


def at_low_priority(work: Callable[..., Result], *args: Any) -> Result:
    """`work(*args)` in a thread with a nice value ten higher; its result, or its exception."""
    found: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, min(os.getpriority(os.PRIO_PROCESS, me) + STEPS, LOWEST))
        try:
            found.append(work(*args))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="loading")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
