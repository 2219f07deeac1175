"""The benchmarks of training on the tiny source: they run, and what they compare is comparable."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.machine import REPOSITORY
from benchmarks.training import balance, pathways_ablation, scaling
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


def _command(name: str, data: Path, out: Path, *words: str) -> tuple[str, dict]:
    """What the real command prints, and the results that it leaves."""
    command = [sys.executable, "-m", f"benchmarks.training.{name}", "--data", str(data), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / f"{name}_{data.name}.md").read_text() in done.stdout
    return done.stdout, json.loads((out / f"{name}_{data.name}.json").read_text())


@pytest.mark.parametrize(
    "name, variant", [("balance", "loss-free, gamma 0.01 (default)"), ("pathways_ablation", "positive")]
)
def test_the_command_trains_by_its_workers(data, tmp_path, name, variant):
    words = ["--variants", variant, "--seeds", "1", "--steps", "4", "--users", "8", "--device", "cpu"]
    page, saved = _command(name, data, tmp_path, *words)
    assert [r["variant"] for r in saved["results"]] == [variant]
    assert "held-out NTP loss" in page and "95 % interval" in page


def test_the_scaling_command_fits_and_goes_on(data, tmp_path):
    """A later call keeps what is there, and its fit is of all of it; two sizes carry no fit, and that is said."""
    words = ["--steps", "4", "--seeds", "1", "--device", "cpu", "--variants", "16"]
    page, saved = _command("scaling", data, tmp_path, *words, "32", "48", "--jobs", "2")
    assert "L(N) = E + A / N^alpha" in page and (tmp_path / "scaling_data.svg").exists()
    assert [r["width"] for r in saved["runs"]] == [16, 32, 48] and saved["fit"].keys() == {"E", "A", "alpha"}
    again = _command("scaling", data, tmp_path, *words)[1]
    assert again["results"] == saved["results"] and again["fit"] == saved["fit"]
    (tmp_path / "scaling_data.json").write_text(json.dumps(saved | {"results": saved["results"][:2]}))
    assert "at least 3" in scaling.fitted(argparse.Namespace(prepared=data, out=tmp_path))


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
