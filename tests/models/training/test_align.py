"""Alignment end to end on a tiny source: files, the decision to keep or throw away, and what the losses are fed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from models.reward.industrial import Rule
from models.reward.session import train_session
from models.reward.train import train_reward
from models.training.align import align
from models.training.align_config import AlignConfig, align_later_day
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import TrainingSet
from models.training.objectives import ObjectiveConfig
from models.training.preference import Preference, PreferenceConfig
from models.training.pretrain import PretrainConfig, pretrain
from models.training.rollout import RolloutConfig, RolloutWorker
from models.training.safety import Probe
from models.training.sessions import longer_half, session_batches
from tests.models.conftest import LIKE, Row, World, small_model, write_training_set

SMALL = {
    "batch_size": 16,
    "min_steps": 1,
    "max_steps": 4,
    "min_users": 16,
    "users_per_step": 4,
    "rollout": RolloutConfig(group_size=8),
    "probe_users": 16,
}
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
    sets, items = changes.pop("training_sets", world.training[1:]), changes.pop("items", None)
    return align(
        training_sets=sets,
        tokenizer=world.tokenizer,
        **trained,
        out=out,
        seed=2,
        items=items,
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


def test_the_loop_looks_at_the_probe_and_stops(world, trained, tmp_path):
    """Nothing is good enough: the look after step 1 ends it, and nothing of the aligned model is shipped."""
    metrics = _align(world, trained, tmp_path / "a", allowed_recall_loss=-1e9, check_every=1, min_steps=4)
    assert metrics["steps"] == 1 and metrics["kept"] == "pretrained"
    assert metrics["reason"].startswith("stopped at step 1 of 4: held-out recall fell")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (trained["model"] / "model.safetensors").read_bytes()


def test_a_gradient_that_is_not_finite_keeps_the_pretrained_model(world, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("models.training.align.item_loss", lambda policy, *rest: policy.bos_D.sum() * float("nan"))
    metrics = _align(world, trained, tmp_path / "a")
    assert metrics["kept"] == "pretrained" and "gradient norm is nan at step 1" in metrics["reason"]
    assert metrics["curve"] == []


@pytest.mark.parametrize("objective", ["ecpo", "grpo", "gbpo", "dpo"])
def test_every_objective_runs_in_the_loop(world, trained, tmp_path, objective):
    config = ObjectiveConfig(name=objective, kl_beta=0.1 if objective == "grpo" else 0.0)
    metrics = _align(world, trained, tmp_path / "a", objective=config, allowed_recall_loss=1.0)
    assert metrics["objective"] == objective and metrics["kept"] == "aligned"
    assert all(math.isfinite(point["policy_loss"]) for point in metrics["curve"])


def test_iterative_dpo_prefers_the_session_of_the_higher_reward(world, trained, tmp_path):
    """V1: lists of five, the session-wise reward, snapshots every second step; alone it raises the lists' reward."""
    common = {"training_sets": world.training, "tokenizer": world.tokenizer, "seed": 1, "progress": lambda _: None}
    train_session(**common, reward=trained["reward"], out=trained["reward"])
    metrics = _align(
        world, trained, tmp_path / "a", objective=ObjectiveConfig(name="dpo", dpo_beta=0.5), rewards={"session": 1.0},
        rollout=RolloutConfig(group_size=25, session_items=5), rsft_weight=0.0, lr_dense=1e-3, lr_sparse=1e-3,
        preference=PreferenceConfig(policy_weight=1.0, format_weight=0.0), min_steps=24, max_steps=24, sync_every=2,
        allowed_recall_loss=1.0, check_every=0,
    )  # fmt: skip
    assert metrics["reward_after"] > metrics["reward_before"] + 0.01


def test_a_lists_log_probability_is_the_sum_of_its_items():
    prefer = Preference(PreferenceConfig(), ObjectiveConfig(), lambda _: torch.zeros(1), None, 0, "cpu", 3)
    assert prefer._lists(torch.arange(12.0).view(2, 6)).tolist() == [[3.0, 12.0], [21.0, 30.0]]


def test_the_policy_objective_raises_the_reward(world, trained, tmp_path):
    """With nothing else in the loss, thirty steps raise the probe's P-Score."""
    alone = PreferenceConfig(policy_weight=1.0, item_policy_weight=1.0, format_weight=0.0)
    metrics = _align(
        world, trained, tmp_path / "a", preference=alone, rsft_weight=0.0, lr_dense=1e-3, lr_sparse=1e-3, min_steps=30,
        max_steps=30, allowed_recall_loss=1.0, check_every=0,
    )  # fmt: skip
    assert metrics["reward_after"] > metrics["reward_before"] + 0.01


def test_the_format_reward_raises_legality(world, trained, tmp_path):
    alone = PreferenceConfig(policy_weight=0.0, item_policy_weight=0.0, format_weight=1.0, format_k=16)
    metrics = _align(
        world, trained, tmp_path / "a", preference=alone, rsft_weight=0.0, lr_dense=1e-3, lr_sparse=1e-3, min_steps=30,
        max_steps=30, allowed_recall_loss=1.0, check_every=0,
    )  # fmt: skip
    assert metrics["legality_after"] > metrics["legality_before"] + 0.05


def test_staleness_is_steps_since_the_push(world, trained, tmp_path):
    metrics = _align(world, trained, tmp_path / "a", min_steps=4, sync_every=3, allowed_recall_loss=1.0)
    assert [p["staleness"] for p in metrics["curve"]] == [0, 1, 2, 0]
    assert metrics["on_policy_share"] == 0.5 and metrics["staleness_mean"] == 0.75


def test_a_worker_of_its_own_process_gives_the_same_files_when_never_pushed(world, trained, tmp_path):
    """Without a push both generate from the same policy in the same order; with one, the process is a step behind."""
    common = {"sync_every": 0, "min_steps": 2, "max_steps": 2, "allowed_recall_loss": 1.0}
    _align(world, trained, tmp_path / "a", **common)
    _align(world, trained, tmp_path / "b", **common, rollout_process=True)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    metrics = _align(world, trained, tmp_path / "c", **(common | {"sync_every": 1, "rollout_process": True}))
    assert [p["staleness"] for p in metrics["curve"]] == [0, 1]


def test_a_small_day_is_passed_over_until_min_steps(world, trained, tmp_path):
    tokenizer = Tokenizer.load(world.tokenizer)
    data = TrainingSet(world.training[1:], tokenizer.catalogue, load_model(trained["model"], tokenizer).config)
    rows = np.arange(40)
    later = align_later_day()
    assert len(session_batches(data, rows, later, 0)) == -(-len(rows) // later.batch_size)  # one pass
    batches = session_batches(data, rows, AlignConfig(batch_size=16, min_steps=7, max_steps=100), 0)
    assert len(batches) == 7 and sorted(np.concatenate(batches[:3]).tolist()) == rows.tolist()
    for changes, steps in (
        ({"batch_size": 4, "min_steps": 2, "max_steps": 100}, 10),  # one whole pass
        ({"batch_size": 4, "min_steps": 2, "max_steps": 3}, 3),
        ({"batch_size": 40, "min_steps": 99, "max_passes": 4}, 4),
    ):
        assert len(session_batches(data, rows, AlignConfig(**changes), 0)) == steps


def test_industrial_rules_are_reported_with_their_shares(world, trained, tmp_path):
    items = tmp_path / "items.parquet"
    rule = Rule(name="half", item_ids=tuple(range(0, 48, 2)), share=0.1, factor=0.5)
    table = pq.read_table(world.items)
    pq.write_table(table.append_column("upload_time", pa.nulls(len(table), pa.timestamp("ms", "UTC"))), items)
    metrics = _align(
        world, trained, tmp_path / "a", items=items, rules=(rule,), allowed_recall_loss=1.0, exposure_window=50
    )
    share = metrics["industrial"]["half"]
    assert share["target"] == 0.1 and 0 < share["before"] <= 1 and 0 <= share["after"] <= 1
    with pytest.raises(ValueError, match="no items table"):
        _align(world, trained, tmp_path / "b", rules=(rule,))


def test_rsft_keeps_the_half_with_the_longer_play_time(world, tmp_path):
    # Rows without an impression stand first, in the middle and last; unknown play time counts as none.
    play = [[], [900], [100, 100], [-1, 300], [], [-1], [5000, 1], []]
    rows = [Row(u, shown=[[i, LIKE, 255, ms, 9000] for i, ms in enumerate(p)]) for u, p in enumerate(play)]
    tokenizer = Tokenizer.load(world.tokenizer)
    model, _ = small_model()
    data = TrainingSet([write_training_set(tmp_path / "d.parquet", rows)], tokenizer.catalogue, model.config)
    assert sorted(longer_half(data, np.array([6, 5, 3, 1, 2])).tolist()) == [1, 3, 6]
    assert sorted(longer_half(data, np.array([1, 2])).tolist()) == [1]


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

    measure = Probe.measure

    def watched(probe, model):
        measured.update(probe.rows.tolist())
        before = set(read["context"])
        found = measure(probe, model)
        read["context"] = before  # what measuring reads is no training
        return found

    monkeypatch.setattr("models.training.align.TrainingSet", Watched)
    monkeypatch.setattr(Probe, "measure", watched)
    metrics = _align(world, trained, tmp_path / "a", min_users=1000, users_per_step=64, max_steps=1)
    assert measured and not measured & (read["context"] | read["batch"])
    assert metrics["users"] == metrics["sessions"]  # ECPO's users are RSFT's


def test_groups_hold_no_item_that_the_user_has_seen(world, trained, tmp_path, monkeypatch):
    """What the training set says was seen reaches the worker, row by row."""
    told: list[set[tuple[int, ...]]] = []
    generate = RolloutWorker.generate

    def watched(worker, context):
        found = generate(worker, context)
        for seen, items in zip(context["seen"].tolist(), found["item_BG"].tolist()):
            assert not set(seen) & {item for item in items if item >= 0}
        told.append({tuple(sorted(i for i in row if i >= 0)) for row in context["seen"].tolist()})
        return found

    monkeypatch.setattr(RolloutWorker, "generate", watched)
    _align(world, trained, tmp_path / "a", max_steps=1)
    tok = Tokenizer.load(world.tokenizer)
    data = TrainingSet(world.training[1:], tok.catalogue, load_model(trained["model"], tok).config)
    every = {tuple(sorted(tok.catalogue.index(data.seen.row(i)).tolist())) for i in range(len(data))}
    assert told and set.union(*told) <= every and any(set.union(*told))


def test_a_day_without_a_positive_is_refused(world, trained, tmp_path):
    path = write_training_set(tmp_path / "day.parquet", [Row(u, shown=[[3, 0, 255, 1, 1]]) for u in range(8)])
    with pytest.raises(ValueError, match="positive"):
        _align(world, trained, tmp_path / "a", training_sets=[path])
