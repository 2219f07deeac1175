"""NaN and spikes stop the run before the weights take them, with the batch kept."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from models.training.pretrain import PretrainConfig
from models.training.stream import Stream
from models.training.watch import WARM, WINDOW, LossWatch
from tests.models.training.tiny import train

BATCH = [{"x": torch.arange(3)}]


def test_a_nan_batch_stops_and_is_kept_and_the_day_goes_on_once_it_is_mended(world, tmp_path, monkeypatch):
    config = PretrainConfig(min_steps=18, batch_size=16, checkpoint_every=2)
    original, poisoned = Stream.batches, {"at": 7}

    def batches(self, start=0):
        for step, batch in enumerate(original(self, start), start):
            if step == poisoned["at"]:
                batch = batch | {"weight": torch.full_like(batch["weight"], torch.nan)}
            yield batch

    monkeypatch.setattr(Stream, "batches", batches)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 7.*step-00000007.*lower lr_dense"):
        train(world, tmp_path / "a", config, work=tmp_path / "work")
    assert not (tmp_path / "a" / "model.safetensors").exists()
    folder = tmp_path / "work" / "study" / "step-00000007"
    kept = load_file(folder / "rank-0-batch-0.safetensors")
    assert kept["weight"].isnan().all() and kept["targets"].shape == kept["target_mask"].shape
    assert json.loads((folder / "about.json").read_text())["loss"] == "nan"

    poisoned["at"] = -1
    said: list[str] = []
    train(world, tmp_path / "a", config, work=tmp_path / "work", progress=said.append)
    assert any("goes on from step-00000006" in line for line in said)
    train(world, tmp_path / "b", config)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_spike_is_judged_against_the_median_of_the_last_steps(tmp_path):
    watch = LossWatch(tmp_path, factor=3.0)
    watch.check(0, 50.0, 50.0, 1.0, BATCH)  # the first steps may be anything
    for step in range(1, WARM + 5):
        watch.check(step, 9.0 + 0.1 * (step % 3), 9.0 + 0.1 * (step % 3), 1.0, BATCH)
    watch.check(30, 26.0, 26.0, 1.0, BATCH)  # high, but no spike
    with pytest.raises(FloatingPointError, match=r"loss is 28\.000, more than 3 times the median 9\.100"):
        watch.check(31, 28.0, 28.0, 1.0, BATCH)
    assert load_file(tmp_path / "step-00000031" / "rank-0-batch-0.safetensors")["x"].tolist() == [0, 1, 2]
    again = LossWatch(tmp_path, 3.0, list(watch.losses))  # a resumed run judges alike
    with pytest.raises(FloatingPointError):
        again.check(31, 28.0, 28.0, 1.0, BATCH)
    assert len(watch.losses) <= WINDOW


@pytest.mark.parametrize("loss, norm, said", [(float("inf"), 1.0, "loss is inf"), (1.0, float("nan"), "norm is nan")])
def test_whatever_is_not_finite_stops_at_once(tmp_path, loss, norm, said):
    with pytest.raises(FloatingPointError, match=f"{said} at step 0"):
        LossWatch(tmp_path, 3.0).check(0, loss, 9.0, norm, BATCH)
