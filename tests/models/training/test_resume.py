"""A run that is killed at any step goes on to the same bytes as one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.training.meter import Meter
from models.training.pretrain import PretrainConfig
from tests.models.training.tiny import cut, train, with_event_head

REPOSITORY = Path(__file__).resolve().parents[3]
FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "metrics.json")
CONFIG = PretrainConfig(min_steps=18, batch_size=16, checkpoint_every=4, pool_rows=40)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def days(world, tmp_path_factory) -> list[Path]:
    return cut(world.training, tmp_path_factory.mktemp("days"), 8)


@pytest.fixture(scope="module")
def unkilled(world, days, tmp_path_factory) -> Path:
    """Without any checkpoint at all."""
    out = tmp_path_factory.mktemp("unkilled")
    train(world, out, CONFIG, training_sets=days)
    return out


def _equal(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_stopped_at_every_step_of_a_run(world, days, unkilled, tmp_path, monkeypatch):
    """One run that stops after every single step, resumed each time: all steps are places to be killed at."""
    original = Meter.step
    said: list[str] = []
    for stop in (0, 3, 4, 5, 9, 17):

        def step(self, number, stop=stop, **numbers):
            original(self, number, **numbers)
            if number == stop:
                raise Killed

        monkeypatch.setattr(Meter, "step", step)
        with pytest.raises(Killed):
            train(world, tmp_path / "out", CONFIG, training_sets=days, work=tmp_path / "work")
    monkeypatch.setattr(Meter, "step", original)
    train(world, tmp_path / "out", CONFIG, training_sets=days, work=tmp_path / "work", progress=said.append)
    assert any("goes on from step-00000016" in line for line in said)
    _equal(tmp_path / "out", unkilled)


def test_a_model_with_an_event_head_goes_on_to_the_same_bytes(world, days, tmp_path, monkeypatch):
    train(world, tmp_path / "unkilled", CONFIG, training_sets=days, build=with_event_head)
    original = Meter.step

    def step(self, number, **numbers):
        original(self, number, **numbers)
        if number == 9:
            raise Killed

    again = {"config": CONFIG, "training_sets": days, "work": tmp_path / "work", "build": with_event_head}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Meter, "step", step)
        train(world, tmp_path / "out", **again)
    said: list[str] = []
    train(world, tmp_path / "out", progress=said.append, **again)
    assert any("goes on from step-" in line for line in said)
    _equal(tmp_path / "out", tmp_path / "unkilled")


def test_a_broken_newest_checkpoint_only_costs_steps(world, days, unkilled, tmp_path, monkeypatch):
    original = Meter.step

    def step(self, number, **numbers):
        original(self, number, **numbers)
        if number == 10:
            raise Killed

    monkeypatch.setattr(Meter, "step", step)
    with pytest.raises(Killed):
        train(world, tmp_path / "out", CONFIG, training_sets=days, work=tmp_path / "work")
    monkeypatch.setattr(Meter, "step", original)
    folder = tmp_path / "work" / "checkpoints"
    deadline = time.monotonic() + 20
    while not (folder / "step-00000008").exists() and time.monotonic() < deadline:  # its thread outlived the loop
        time.sleep(0.01)
    (folder / "step-00000008" / "rank-00000.safetensors").write_bytes(b"half")
    said: list[str] = []
    train(world, tmp_path / "out", CONFIG, training_sets=days, work=tmp_path / "work", progress=said.append)
    assert any("step-00000008 is damaged" in line for line in said) and any("step-00000004" in line for line in said)
    _equal(tmp_path / "out", unkilled)


def test_checkpoints_of_other_data_or_settings_are_not_used(world, days, tmp_path):
    work = tmp_path / "work"
    train(world, tmp_path / "a", CONFIG, training_sets=days, work=work)
    said: list[str] = []
    train(world, tmp_path / "b", CONFIG, training_sets=days, work=work, seed=6, progress=said.append)
    assert any("another run" in line for line in said) and not any("goes on" in line for line in said)


def test_sigkill_at_random_moments(world, days, unkilled, tmp_path):
    """The real thing: a process, killed without warning wherever it is, two times, then left to end."""
    rng, out, work = random.Random(), tmp_path / "out", tmp_path / "work"
    fields = f'{{"min_steps": {CONFIG.min_steps}, "batch_size": 16, "checkpoint_every": 4, "pool_rows": 40}}'
    command = [sys.executable, "-m", "models.training.pretrain", "--training-sets", *map(str, days), "--seed", "5"]
    command += ["--tokenizer", str(world.tokenizer), "--out", str(out), "--work", str(work), "--device", "cpu"]
    command += ["--size", "tests.models.training.tiny:tiny", "--config", fields]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    kills = 0
    for wanted in (4, 12):
        process = start()
        while process.poll() is None and not list((work / "checkpoints").glob(f"step-{wanted:08d}")):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills, "the process was faster than the test"
    last = start()
    text, _ = last.communicate()
    assert last.returncode == 0 and "goes on from step-" in text
    _equal(out, unkilled)
