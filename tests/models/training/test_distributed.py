"""Two and four processes (gloo, on CPU) train to the loss of one, whatever splits a step between them.

Tolerance: 1e-4 relative on every loss of the curve in float32; sums over processes are added in another order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.training.parallelize import Processes
from models.training.pretrain import PretrainConfig
from tests.models.training.tiny import cut, train

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = {"min_steps": 8, "batch_size": 4}


def torchrun(processes: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> tuple[list[Path], list[float], Path]:
    """One process that takes four micro-batches a step."""
    root = tmp_path_factory.mktemp("alone")
    days = cut(world.training, root / "days", 8)
    metrics = train(world, root / "out", PretrainConfig(**CONFIG, accumulate=4), training_sets=days)
    return days, [point["loss"] for point in metrics["loss"]], root


def _arguments(world, days: list[Path], out: Path, **config: int) -> list[str]:
    arguments = ["models.training.pretrain", "--training-sets", *map(str, days), "--tokenizer", str(world.tokenizer)]
    arguments += ["--out", str(out), "--seed", "5", "--device", "cpu", "--size", "tests.models.training.tiny:tiny"]
    return [*arguments, "--config", json.dumps(CONFIG | config)]


def _curve(out: Path) -> list[float]:
    return [point["loss"] for point in json.loads((out / "metrics.json").read_text())["loss"]]


def test_two_processes_with_two_micro_batches_and_one_goes_on_from_their_checkpoint(world, alone, tmp_path):
    days, expected, _ = alone
    work = ["--work", str(tmp_path / "work")]
    torchrun(2, *_arguments(world, days, tmp_path / "two", accumulate=2, checkpoint_every=4), *work)
    assert _curve(tmp_path / "two") == pytest.approx(expected, rel=1e-4)
    # Dense parameters were sharded by FSDP2; the checkpoint knows how to be one process's again.
    said: list[str] = []
    config = PretrainConfig(**CONFIG, accumulate=4, checkpoint_every=4)
    last = train(world, tmp_path / "one", config, training_sets=days, work=tmp_path / "work", progress=said.append)
    assert any("goes on from step-" in line for line in said)
    assert [point["loss"] for point in last["loss"]] == pytest.approx(expected, rel=1e-4)


def test_four_processes_with_hybrid_sharding_and_recomputed_activations(world, alone, tmp_path):
    days, expected, _ = alone
    torchrun(4, *_arguments(world, days, tmp_path / "four", replicas=2, recompute=True))
    assert _curve(tmp_path / "four") == pytest.approx(expected, rel=1e-4)


def test_tables_gradients_norms_and_checkpoints_of_four_processes(tmp_path):
    torchrun(4, "tests.models.training.distributed_checks", str(tmp_path))


def test_replicas_must_divide_the_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="replicas is 3, which does not divide the 4 processes"):
        Processes.join("cpu", replicas=3)
