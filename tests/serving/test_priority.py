"""Loading at a low priority: the thread's own, given back, with the result or the error."""

from __future__ import annotations

import os
import threading

import pytest

from serving.priority import at_low_priority


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_work_is_slowed_down():
    before = nice()
    assert at_low_priority(nice) == min(before + 10, 19)
    assert nice() == before


def test_an_error_comes_through():
    with pytest.raises(ValueError, match="invalid literal"):
        at_low_priority(int, "no release")
