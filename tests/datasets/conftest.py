"""The tiny KuaiRand files as a fixture."""

from __future__ import annotations

import pytest
from tiny_kuairand import KuaiRandFiles, tiny_files


@pytest.fixture
def files() -> KuaiRandFiles:
    return tiny_files()
