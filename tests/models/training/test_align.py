"""Alignment end to end on a tiny source: files, the decision to keep or throw away, and what the losses are fed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from models.reward.pscore import PScore
from models.reward.train import train_reward
from models.training.align import (
    AlignConfig,
    _decide,
    _longer_half,
    _measure,
    _preference_losses,
    align,
    sequence_logp,
)
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import TrainingSet
from models.training.pretrain import PretrainConfig, pretrain
from tests.models.conftest import LIKE, Row, World, random_batch, small_model, write_training_set

SMALL = {"batch_size": 16, "max_steps": 4, "min_users": 16, "users_per_step": 4, "group_size": 8, "probe_users": 16}
FILES = {"model.safetensors", "config.json", "optimizer.safetensors", "metrics.json"}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trained")
    (root / "model").mkdir(), (root / "reward").mkdir()
    common = {"training_sets": world.training, "tokenizer": world.tokenizer, "previous": None}
    pretrain(
        **common,
        out=root / "model",
        seed=1,
        progress=lambda _: None,
        config=PretrainConfig(min_steps=1, batch_size=16),
    )
    train_reward(**common, out=root / "reward", seed=1, progress=lambda _: None)
    return {"model": root / "model", "reward": root / "reward"}


def _align(world: World, trained: dict[str, Path], out: Path, **changes) -> dict:
    out.mkdir()
    sets = changes.pop("training_sets", world.training[1:])
    return align(
        training_sets=sets,
        tokenizer=world.tokenizer,
        **trained,
        out=out,
        seed=2,
        progress=lambda _: None,
        config=AlignConfig(**(SMALL | changes)),
    )


def test_aligned_model_is_written_with_its_curves_and_repeats_by_seed(world, trained, tmp_path):
    metrics = _align(world, trained, tmp_path / "a", allowed_recall_loss=1.0)
    assert metrics["kept"] == "aligned"
    assert {p.name for p in (tmp_path / "a").iterdir()} == FILES
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == metrics
    assert [point["step"] for point in metrics["curve"]] == [1, 2]  # 64 users less the probe, the longer half, by 16
    likers = sum(any(v & LIKE for v in row) for row in pq.read_table(world.training[1])["label"].to_pylist())
    assert metrics["sessions"] == math.ceil((likers - likers // 4) / 2) and metrics["users"] == 16
    numbers = [v for point in metrics["curve"] for v in point.values()]
    assert all(math.isfinite(v) for v in numbers)
    for name in ("reward", "recall_probe", "legality"):
        assert 0 <= metrics[f"{name}_before"] <= 1 and 0 <= metrics[f"{name}_after"] <= 1
    tokenizer = Tokenizer.load(world.tokenizer)
    before, after = load_model(trained["model"], tokenizer), load_model(tmp_path / "a", tokenizer)
    assert not torch.equal(before.bos_D, after.bos_D)
    assert set(load_file(tmp_path / "a" / "optimizer.safetensors"))
    _align(world, trained, tmp_path / "b", allowed_recall_loss=1.0)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_pretrained_model_is_kept_when_recall_falls_past_the_limit(world, trained, tmp_path):
    metrics = _align(world, trained, tmp_path / "a", allowed_recall_loss=-1e9, max_steps=1)  # nothing is good enough
    assert metrics["kept"] == "pretrained" and "fell" in metrics["reason"]
    for name in ("model.safetensors", "config.json", "optimizer.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (trained["model"] / name).read_bytes()


@pytest.mark.parametrize("after, kept", [(0.30, "aligned"), (0.2911, "aligned"), (0.2909, "pretrained")])
def test_the_limit_is_relative(after, kept):
    decision, reason = _decide({"recall_probe": 0.30}, {"recall_probe": after}, AlignConfig(allowed_recall_loss=0.03))
    assert decision == kept and "limit 0.2910" in reason


def test_rsft_keeps_the_half_with_the_longer_play_time(world, tmp_path):
    # Rows without an impression stand first, in the middle and last; unknown play time counts as none.
    play = [[], [900], [100, 100], [-1, 300], [], [-1], [5000, 1], []]
    rows = [Row(u, shown=[[i, LIKE, 255, ms, 9000] for i, ms in enumerate(p)]) for u, p in enumerate(play)]
    tokenizer = Tokenizer.load(world.tokenizer)
    model, _ = small_model()
    data = TrainingSet([write_training_set(tmp_path / "d.parquet", rows)], tokenizer.catalogue, model.config)
    assert sorted(_longer_half(data, np.array([6, 5, 3, 1, 2])).tolist()) == [1, 3, 6]
    assert sorted(_longer_half(data, np.array([1, 2])).tolist()) == [1]


def test_the_probe_rows_are_never_trained_on(world, trained, tmp_path, monkeypatch):
    """Neither RSFT nor ECPO reads a row that measures, also when ECPO may take every user."""
    read: dict[str, set[int]] = {"context": set(), "batch": set()}

    class Watched(TrainingSet):
        def context(self, rows):
            read["context"] |= set(rows.tolist())
            return super().context(rows)

        def batch(self, rows, max_targets):
            read["batch"] |= set(rows.tolist())
            return super().batch(rows, max_targets)

    measured: set[int] = set()

    def measure(model, p_score, data, rows, *rest):
        measured.update(rows.tolist())
        before = set(read["context"])
        found = _measure(model, p_score, data, rows, *rest)
        read["context"] = before  # what measuring reads is no training
        return found

    monkeypatch.setattr("models.training.align.TrainingSet", Watched)
    monkeypatch.setattr("models.training.align._measure", measure)
    metrics = _align(world, trained, tmp_path / "a", min_users=1000, users_per_step=64, max_steps=1)
    assert measured and not measured & (read["context"] | read["batch"])
    assert metrics["users"] == metrics["sessions"]  # ECPO's users are RSFT's


def test_a_place_without_an_item_has_no_reward(world, trained):
    """Only five items can be spelled: the mean P-Score is theirs, and the other places count for nothing."""
    tokenizer = Tokenizer.load(world.tokenizer)
    model = load_model(trained["model"], tokenizer)
    p_score = PScore.load(trained["reward"], tokenizer).eval()
    data = TrainingSet(world.training[1:], tokenizer.catalogue, model.config)
    first = tokenizer.sid_NL[:, 0]
    code = np.bincount(first).argmax()
    with torch.no_grad():
        model.code_bias_LK[0, torch.arange(16) != code] = float("-inf")
    possible = np.flatnonzero(first == code)
    assert len(possible) < 10
    rows = np.flatnonzero(data.targets.lengths > 0)[:8]
    found = _measure(model, p_score, data, rows, tokenizer, AlignConfig(**SMALL), 0)
    expected = p_score.score(data.context(rows), torch.from_numpy(possible).expand(len(rows), -1)).mean().item()
    assert found["reward"] == pytest.approx(expected, rel=1e-5)
    recall = np.mean([np.isin(data.targets.row(i), possible).mean() for i in rows])
    assert found["recall_probe"] == pytest.approx(recall)


@torch.no_grad()
def test_sequence_logp_sums_to_one_over_all_tuples():
    model, _ = small_model()
    z, mask = model.encode(random_batch(model, [(3, 2, 1), (0, 0, 0)]))
    every = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).reshape(1, -1, 3).expand(2, -1, -1)
    torch.testing.assert_close(sequence_logp(model, every, z, mask).exp().sum(1), torch.ones(2), rtol=1e-4, atol=1e-4)


def test_a_rollout_group_holds_each_item_once(world, trained):
    """With a group as large as the catalogue, the mean reward is the mean P-Score of the whole catalogue."""
    tokenizer = Tokenizer.load(world.tokenizer)
    model = load_model(trained["model"], tokenizer)
    p_score = PScore.load(trained["reward"], tokenizer).eval()
    context = TrainingSet(world.training[1:], tokenizer.catalogue, model.config).context(np.arange(5))
    config = AlignConfig(**(SMALL | {"group_size": 300}))
    behaviour = load_model(trained["model"], tokenizer).eval()
    ecpo, form, stats = _preference_losses(
        model.train(), behaviour, p_score, context, tokenizer, config, torch.Generator().manual_seed(0)
    )
    every = torch.arange(48).expand(5, -1)
    assert stats["reward"] == pytest.approx(p_score.score(context, every).mean().item(), rel=1e-4)
    assert 0 <= stats["legality"] <= 1
    (ecpo + form).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_day_without_a_positive_is_refused(world, trained, tmp_path):
    path = write_training_set(tmp_path / "day.parquet", [Row(u, shown=[[3, 0, 255, 1, 1]]) for u in range(8)])
    with pytest.raises(ValueError, match="positive"):
        _align(world, trained, tmp_path / "a", training_sets=[path])
