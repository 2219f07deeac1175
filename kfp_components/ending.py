"""How processes of a run end: all together, whichever of them is killed and however.

    end_with_reader()      # in a process whose output another one reads through a pipe
    end_tree(process.pid)  # a process and all below it

A pipeline reads the output of its components through pipes, Airflow that of the pipeline. When a reader dies, even by
SIGKILL, the kernel tells the writers, and they end too: no orphan goes on writing beside the next run.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading

import psutil

GRACE_S = 15.0


def end_with_reader(*, children_first: bool = False) -> None:
    """End on SIGTERM, and when the reader of stdout is gone: unwind, so that what was started is stopped.

    `children_first`: end all descendants before unwinding, for a process that would wait for them. After the grace
    time the process ends at once. Call it from the main thread.
    """

    def stop(*_: object) -> None:
        if children_first:
            end_tree(os.getpid(), itself=False)
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_watch, args=(os.dup(1),), daemon=True).start()


def end_tree(pid: int, *, itself: bool = True, grace_s: float = GRACE_S) -> None:
    """End the descendants of a process and the process, whatever sessions they are in: SIGTERM, then SIGKILL."""
    try:
        top = psutil.Process(pid)
        tree = [*top.children(recursive=True), *([top] if itself else [])]
    except psutil.NoSuchProcess:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, tree = psutil.wait_procs(tree, timeout=grace_s)


def _watch(output: int) -> None:
    poller = select.poll()
    poller.register(output, 0)  # errors are always told; a pipe has one when nobody can read it any more
    poller.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    # The main thread may sit in native code that no signal interrupts.
    threading.Event().wait(2 * GRACE_S)
    end_tree(os.getpid(), itself=False, grace_s=1.0)
    os._exit(143)
