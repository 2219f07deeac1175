"""The read-only Feast server: answers over HTTP with the store's rows, and has no way to write."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from datasets.errors import DataError
from feature_repo.server import SERVED, read_only_app
from feature_repo.services import SERVICE
from feature_repo.store import apply, materialize
from tests.feature_repo.conftest import DAYS, end_of


@pytest.fixture(scope="module")
def client(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    features, store = folders[0], tmp_path_factory.mktemp("served")
    apply(features=features, feature_store=store)
    materialize(features=features, feature_store=store, start=end_of(DAYS[0] - timedelta(days=1)), end=end_of(DAYS[-1]))
    return TestClient(read_only_app(store))


def test_a_row_is_served(client: TestClient) -> None:
    asked = {"feature_service": SERVICE, "entities": {"user_id": [3, 999_999]}}
    answer = client.post("/get-online-features", json=asked)
    assert answer.status_code == 200
    found = dict(zip(answer.json()["metadata"]["feature_names"], answer.json()["results"]))
    assert found["user_id"]["values"] == [3, 999_999]
    assert len(found["seen_item_id"]["values"][0]) > 0
    assert found["seen_item_id"]["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path", ["push", "write-to-online-store", "materialize", "materialize-incremental", "chat", "search", "docs"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.post(f"/{path}", json={}).status_code == 404
    assert client.get(f"/{path}").status_code == 404


def test_routes_are_the_two(client: TestClient) -> None:
    assert {(route.path, method) for route in client.app.router.routes for method in route.methods} == SERVED


def test_a_store_that_was_never_applied_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run a day first"):
        read_only_app(tmp_path)
