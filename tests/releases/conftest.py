"""A small set of release files (made up: this room looks at headers only) and a function that publishes it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from releases.manifest import REQUIRED
from releases.object_store import DirectoryStore
from releases.publish import publish
from tests.releases.made_up import made_up


def write_files(folder: Path, seed: int) -> dict[str, Path]:
    rng = random.Random(seed)
    files = {}
    for name in (*REQUIRED, "reward/reward.safetensors"):
        files[name] = made_up(folder / name, rng.randbytes(25_000).hex())
    return files


def publish_small(store: DirectoryStore, files: dict[str, Path], day: str = "2022-05-05", **changes) -> str:
    arguments = {
        "summaries": {"feature_service": "onerec_v1"},
        "metrics": {"rows": [{"name": "onerec", "recall@50": 0.2}], "legality": 1.0},
        "data": {"impressions/dt=2022-05-05": "ab"},
        "parents": [],
        "seed": 7,
        "code_commit": "c0ffee",
        "environment": {"ml": "lock"},
    }
    return publish(store=store, day=day, source="simulated", files=files, **(arguments | changes))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_files(tmp_path / "built", 1)
