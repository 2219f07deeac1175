"""What a run says of itself: the line, the curve, the event files, and what goes over a kill."""

from __future__ import annotations

import pytest

from models.training import meter as metering
from models.training.meter import Meter, imbalance
from models.training.pretrain import PretrainConfig
from tests.models.training.tiny import train

STEP = {"targets": 6, "samples": 4, "flops": None, "norm": 0.5, "rate": 1.0, "loads": [[1.0, 3.0]], "waited": 0.1}


def test_the_curve_averages_and_goes_on_after_a_kill():
    whole, first = (Meter(steps=300, say=pytest.fail) for _ in range(2))
    for step in range(300):
        whole.step(step, levels=[step, 1.0, 2.0], **STEP)
    for step in range(100):
        first.step(step, levels=[step, 1.0, 2.0], **STEP)
    second = Meter(steps=300, say=pytest.fail, kept=first.state(), start=100)
    for step in range(100, 300):
        second.step(step, levels=[step, 1.0, 2.0], **STEP)
    assert second.curve == whole.curve and len(whole.curve) == 100 and second.targets == 1800
    assert whole.curve[0] == {
        "step": 3,
        "loss": 4.0,
        "loss_c0": 1.0,
        "loss_c1": 1.0,
        "loss_c2": 2.0,
        "expert_imbalance": 1.5,
    }
    assert whole.curve[-1]["step"] == 300


def test_a_line_every_few_seconds_says_loss_speed_waiting_and_balance(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metering.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metering, "device_peak", lambda device: 100.0)
    said: list[str] = []
    meter = Meter(steps=9, say=said.append, processes=2)
    for step in range(9):
        now[0] += 2.0
        meter.step(step, levels=[1.0, 2.0, 3.5], **(STEP | {"waited": now[0] / 10, "flops": 100.0}))
    assert len(said) == 3 and said[0].startswith("step 3/9  loss 6.500 (1.00 2.00 3.50)  2 samples/s")
    assert "MFU 25.0%" in said[0] and "data-wait 10.0%" in said[0] and "experts 1.50" in said[0] and "GiB" in said[0]
    assert meter.close()["mfu"] == pytest.approx(0.25)


def test_no_mfu_where_the_peak_is_not_known():
    meter = Meter(steps=1, say=print)
    meter.step(0, levels=[1.0], **(STEP | {"flops": 1e9}))
    assert "mfu" not in meter.speed() and "MFU" not in meter.line(0, [1.0], [])


def test_imbalance_is_the_largest_load_over_the_mean():
    assert imbalance([2.0, 2.0]) == 1 and imbalance([0.0, 8.0, 0.0, 0.0]) == 4 and imbalance([0.0, 0.0]) == 0


def test_event_files_hold_the_run(world, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metrics = train(world, tmp_path / "out", PretrainConfig(min_steps=4, batch_size=32), events=tmp_path / "events")
    events = event_accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {
        "loss/all",
        "loss/level_1",
        "gradient_norm",
        "data_wait",
        "samples_per_second",
        "expert_balance/layer_1",
    } <= set(names)
    loss = events.Scalars("loss/all")
    assert [e.step for e in loss] == list(range(1, metrics["steps"] + 1))
    assert loss[-1].value == pytest.approx(metrics["loss"][-1]["loss"], rel=1e-5)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"model.safetensors"} and 0 <= metrics["data_wait"] <= 1
