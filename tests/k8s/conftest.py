"""Every overlay in turn."""

from __future__ import annotations

import pytest

from tests.k8s.manifests import OVERLAYS


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param
