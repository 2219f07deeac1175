"""A small untrained release with a real tokenizer, a real Feast store, and one Triton server for most of the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datasets.contract import ITEMS
from datasets.partitions import PART, partition_path
from feature_repo.services import SERVICE
from feature_repo.store import apply, materialize
from feature_repo.training_set import build
from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.reward.pscore import PScore, PScoreConfig
from models.tokenizer.refresh import refresh_tokenizer
from models.training.checkpoint import Tokenizer, save_model
from releases.object_store import DirectoryStore
from releases.publish import publish
from serving.client import RecommendClient
from tests.feature_repo.conftest import DAYS, FIRST_DAY, STATIC_FEATURES, end_of, write_days

N_ITEMS = 200  # item ids 0 to 199; the histories also hold ids up to 255 that the catalogue does not know


@dataclasses.dataclass(frozen=True)
class World:
    """The folders a server needs, and the files of the release for tests that mix their own."""

    store: DirectoryStore
    release: Path
    other: Path
    files: dict[str, Path]
    features: Path
    feature_store: Path
    items: Path


def write_items(path: Path) -> Path:
    rng = np.random.default_rng(3)
    columns = {field.name: pa.nulls(N_ITEMS, field.type) for field in ITEMS}
    columns["item_id"] = pa.array(np.arange(N_ITEMS))
    columns["author_id"] = pa.array(rng.integers(0, 20, N_ITEMS))
    columns["tags"] = pa.array([[int(t)] for t in rng.integers(0, 9, N_ITEMS)], pa.list_(pa.int32()))
    columns["upload_time"] = pa.array(
        [i * 1000 if i else None for i in range(N_ITEMS)], ITEMS.field("upload_time").type
    )
    columns["caption"] = pa.array([None if i % 7 == 0 else f"video number {i}" for i in range(N_ITEMS)])
    pq.write_table(pa.table(columns, schema=ITEMS), path)
    return path


def fit_tokenizer(items: Path, training: Path, out: Path, seed: int) -> Tokenizer:
    out.mkdir(parents=True)
    refresh_tokenizer(items=items, training_sets=[training], previous=None, out=out, seed=seed, progress=lambda _: None)
    return Tokenizer.load(out)


def publish_release(store: DirectoryStore, files: dict[str, Path], service: str = SERVICE) -> Path:
    release_id = publish(
        store=store,
        day=DAYS[-1].isoformat(),
        source="test",
        files=files,
        summaries={"feature_service": {"name": service}},
        metrics={},
        data={},
        parents=[],
        seed=1,
        code_commit="test",
        environment={},
    )
    return store.local(f"releases/{release_id}")


def build_world(base: Path) -> World:
    """Everything a server needs, and two releases that differ in the model's seed, each with a reward model."""
    features, feature_store = base / "features", base / "feature_store"
    write_days(features, np.random.default_rng(5))
    apply(features=features, feature_store=feature_store)
    build(features=features, feature_store=feature_store, day=DAYS[-1])
    start = end_of(FIRST_DAY).replace(hour=0)
    materialize(features=features, feature_store=feature_store, start=start, end=end_of(DAYS[-1]))
    items = write_items(base / "items.parquet")
    training = partition_path(features / "training", DAYS[-1]) / PART
    store, releases = DirectoryStore(base / "store"), []
    tokenizer = fit_tokenizer(items, training, base / "tokenizer", seed=1)
    sizes = {"codebook_size": tokenizer.codebook_size, "items": N_ITEMS, "static_features": STATIC_FEATURES}
    for seed in (2, 1):
        built = base / f"built{seed}"
        (built / "model").mkdir(parents=True)
        (built / "reward").mkdir()
        shutil.copytree(base / "tokenizer", built / "tokenizer")
        torch.manual_seed(seed)
        save_model(OneRec(onerec_laptop(**sizes), torch.from_numpy(tokenizer.sid_NL)), built / "model")
        PScore(PScoreConfig(**sizes), torch.from_numpy(tokenizer.sid_NL)).save(built / "reward")
        files = {str(p.relative_to(built)): p for p in built.rglob("*") if p.is_file()} | {"items.parquet": items}
        releases.append(publish_release(store, files))
    return World(store, releases[-1], releases[0], files, features, feature_store, items)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("serving"))


OWNER = """
import sys
from pathlib import Path
from serving.triton_server import TritonServer
release, features, feature_store, log = map(Path, sys.argv[1:])
with TritonServer(release=release, features=features, feature_store=feature_store, log=log) as server:
    print(server.grpc_url, flush=True)
    sys.stdin.read()
"""


def writers_of(log: Path) -> list[str]:
    """The living processes whose output is this file: a server and its stubs."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == str(log):
                found.append(descriptor.parts[2])
    return found


@pytest.fixture(scope="session")
def grpc_url(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running server. It belongs to a process that is killed in the end: the server must not outlive it."""
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    command = [sys.executable, "-c", OWNER, *map(str, (world.release, world.features, world.feature_store, log))]
    options = {"cwd": Path(__file__).parents[2], "env": os.environ | {"TMPDIR": str(log.parent)}, "text": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as owner:
        url = owner.stdout.readline().strip()
        assert url, f"no server: see {log}"
        yield url
        assert writers_of(log)
        owner.kill()
    deadline = time.monotonic() + 60
    while left := writers_of(log):
        assert time.monotonic() < deadline, f"processes {left} outlived the owner of their server"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def client(grpc_url: str) -> Iterator[RecommendClient]:
    with RecommendClient(grpc_url) as connected:
        yield connected
