"""The benchmarks of training on the tiny source: they run, and what they compare is comparable."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.training import balance, pathways_ablation
from benchmarks.training.distributed import project
from benchmarks.training.loader import ungrouped
from benchmarks.training.prepare import prepare
from models.training.losses import PretrainLoss
from models.training.stream import COLUMNS
from tests.models.conftest import random_batch, small_model


@pytest.fixture(scope="module")
def data(world, tmp_path_factory) -> Path:
    """A prepared folder made from a workspace's layout."""
    root = tmp_path_factory.mktemp("bench")
    for kind, paths in (("training", world.training), ("evaluation", [world.evaluation])):
        for path in paths:
            day = "dt=2022-05-06" if kind == "evaluation" else path.parent.name
            (root / "w" / "features" / kind / day).mkdir(parents=True)
            shutil.copyfile(path, root / "w" / "features" / kind / day / "part-0.parquet")
    shutil.copytree(world.tokenizer, root / "w" / "days" / "2022-05-06" / "tokenize")
    prepare(root / "w", "2022-05-06", 1, root / "data")
    return root / "data"


def _arguments(data: Path) -> argparse.Namespace:
    return argparse.Namespace(prepared=data, device="cpu", steps=1, users=16)


def test_a_prepared_folder_holds_the_last_days_and_what_is_read(data):
    (training,) = (data / "training").iterdir()
    assert training.name == "dt=2022-05-06.parquet" and set(pq.read_schema(training).names) == set(COLUMNS)
    assert "seen_item_id" in pq.read_schema(data / "evaluation.parquet").names


def test_variants_train_and_are_measured(data):
    none, auxiliary = (balance.one(v, 1, _arguments(data)) for v in ("no balancing", "auxiliary loss, weight 0.1"))
    assert none.keys() == {"loss", "imbalance", "held_out_loss", "recall"} and 1 <= none["imbalance"] <= 4
    assert none["held_out_loss"] != auxiliary["held_out_loss"] and 0 <= none["recall"] <= 1
    assert {"loss", "held_out_loss", "recall"} == pathways_ablation.one("positive", 1, _arguments(data)).keys()


def test_ungrouped_rows_have_the_grouped_loss():
    """Grouping is only a saving: the same targets, each with its context again, add up to the same loss."""
    model, _ = small_model()
    loss = PretrainLoss(model, 0.7)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    batch = random_batch(model, [(3, 2, 1), (5, 6, 7), (1, 1, 4)])
    batch |= {
        "targets": torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]]),
        "target_mask": mask,
        "weight": torch.tensor([0.5, 1.0, 2.0]),
    }
    parts = ungrouped(batch)
    assert [len(p["targets"]) for p in parts] == [3, 3]
    total = mask.sum()
    assert sum(loss(p, total)[0] for p in parts).item() == pytest.approx(loss(batch, total)[0].item(), rel=1e-5)


def test_the_projection_loses_efficiency_with_distance():
    knobs = {"dense": 0.91, "inside": 400.0, "between": 400.0, "batch": 256, "rows": 600, "row_bytes": 1024}
    lines = project(argparse.Namespace(step_seconds=0.137, **knobs)).splitlines()[2:7]
    efficiency = [float(line.split("|")[-2].strip(" %")) for line in lines]
    assert efficiency[0] == 100 and efficiency == sorted(efficiency, reverse=True) and efficiency[-1] > 0
