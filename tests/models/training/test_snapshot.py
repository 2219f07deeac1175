"""Checkpoints of a run: round trip, asynchrony, damage seen by digest, kills between any two writes."""

from __future__ import annotations

import json

import pytest
import torch

from models.training.snapshot import Checkpointer, newest


def _tensors(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((5, 3), value), "b": torch.full((2,), value).bfloat16(), "step": torch.tensor(value)}


def _save(folder, *steps: int, run: str = "r", **changes) -> None:
    saver = Checkpointer(folder, run, **changes)
    for step in steps:
        saver.save(step, _tensors(step), {"curve": [step]})
    saver.wait()


def test_round_trip_in_place(tmp_path):
    _save(tmp_path, 3, 7)
    found = newest(tmp_path, "r", pytest.fail)
    assert found.step == 7 and found.state == {"curve": [7]}
    target = _tensors()
    same = target["a"]
    found.load(target)
    assert target["a"] is same and all(torch.equal(target[k], _tensors(7)[k]) for k in target)
    with pytest.raises(ValueError, match=r"\['c'\] are missing"):
        found.load({"c": torch.zeros(1)})


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path):
    saver, tensors, state = Checkpointer(tmp_path, "r"), _tensors(1), {"curve": [1]}
    saver.save(1, tensors, state)
    tensors["a"].fill_(9)
    state["curve"].append(9)
    saver.wait()
    found = newest(tmp_path, "r", pytest.fail)
    again = _tensors()
    found.load(again)
    assert torch.equal(again["a"], _tensors(1)["a"]) and found.state == {"curve": [1]}


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path):
    (tmp_path / ".step-00000009").mkdir(parents=True)
    _save(tmp_path, 1, 2, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("damage", ["bytes", "half", "no weights", "no meta", "bad meta"])
def test_a_damaged_checkpoint_is_said_and_passed_over(tmp_path, damage):
    _save(tmp_path, 1, 2)
    weights, meta = (tmp_path / "step-00000002" / name for name in ("rank-00000.safetensors", "meta.json"))
    if damage == "bytes":
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)
    elif damage == "half":
        weights.write_bytes(weights.read_bytes()[:50])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no meta":
        meta.unlink()
    else:
        meta.write_text("{")
    said: list[str] = []
    assert newest(tmp_path, "r", said.append).step == 1
    assert len(said) == 1 and "step-00000002 is damaged" in said[0]
    _save(tmp_path, 2)  # and it is written over
    assert newest(tmp_path, "r", pytest.fail).step == 2


def test_another_runs_checkpoint_is_not_used(tmp_path):
    _save(tmp_path, 4, run="other")
    said: list[str] = []
    assert newest(tmp_path, "r", said.append) is None and "another run" in said[0]
    assert newest(tmp_path / "nothing", "r", pytest.fail) is None


def test_two_processes_write_and_any_number_reads(tmp_path):
    """Process 1 brings its file late: process 0 waits for it, then names the checkpoint."""
    one = Checkpointer(tmp_path, "r")
    zero = Checkpointer(tmp_path, "r")
    zero.world, one.rank, one.world = 2, 1, 2
    zero.save(5, {"a": torch.arange(3.0)}, {})
    assert newest(tmp_path, "r", pytest.fail) is None
    one.save(5, {"b": torch.arange(4.0)}, {})
    one.wait(), zero.wait()
    found = newest(tmp_path, "r", pytest.fail)
    assert set(found.files) == {"rank-00000.safetensors", "rank-00001.safetensors"}
    both = {"a": torch.zeros(3), "b": torch.zeros(4)}
    found.load(both)
    assert both["a"].tolist() == [0, 1, 2] and both["b"].tolist() == [0, 1, 2, 3]


def test_a_failed_write_is_raised_at_the_next_call(tmp_path):
    saver = Checkpointer(tmp_path, "r")
    saver.save(1, _tensors(), {})
    saver.wait()
    (tmp_path / ".step-00000002").write_text("a file where the folder should be")
    saver.save(2, _tensors(), {})
    with pytest.raises(FileExistsError):
        saver.wait()
    assert json.loads((tmp_path / "step-00000001" / "meta.json").read_text())["step"] == 1
