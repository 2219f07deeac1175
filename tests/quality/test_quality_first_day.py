"""The fast first day: its loss is pre-training's, its rows are the loader's, and it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.first_day import first_day, later_day
from benchmarks.quality.first_day_step import Recipe, forgetful, loss_of, on_device, plan
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer, load_model, load_optimizer
from models.training.data import TrainingSet
from models.training.losses import PretrainLoss
from models.training.optimizer import make_optimizer
from models.training.pretrain_config import PretrainConfig
from tests.models.conftest import world  # noqa: F401  (the synthetic source of the models' tests)


@pytest.fixture
def set_up(world):  # noqa: F811
    tok = Tokenizer.load(world.tokenizer)
    torch.manual_seed(0)
    config = OneRecConfig(
        codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=3, d_model=16, heads=2, ffn_dim=16
    )
    data = TrainingSet(list(world.training), tok.catalogue, config)
    return OneRec(config, torch.from_numpy(tok.sid_NL)), data


def test_the_loss_is_pretrainings(set_up) -> None:
    model, data = set_up
    used = np.flatnonzero(data.targets.lengths)
    weight = np.random.default_rng(0).random(len(data))
    rows = on_device(data, used, weight, PretrainConfig())
    batch = {k: v[:12].long() if v.dtype == torch.int32 else v[:12] for k, v in rows.items()}
    own = data.batch(used[:12], 8, 16) | {"weight": torch.from_numpy(weight[used[:12]]).float()}
    padding = {k: torch.cat([v, rows[k][-1:].to(v.dtype)]) for k, v in batch.items()}
    for recipe in (Recipe(item_weight=0.7), Recipe(item_weight=0.7, shown_weight=0.3)):
        loss = PretrainLoss(model, 0.7, shown_weight=recipe.shown_weight)
        expected, _ = loss(own, own["target_mask"].sum())
        torch.testing.assert_close(loss_of(model, batch, recipe), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss_of(model, padding, recipe), expected, rtol=1e-5, atol=1e-5)


def test_short_events_foretell_the_next_as_in_pretraining_and_what_is_forgotten_too(set_up) -> None:
    model, data = set_up
    torch.manual_seed(0)
    model = OneRec(dataclasses.replace(model.config, event_head=True), model.sid_NL[:-1])
    used = np.flatnonzero(data.targets.lengths * (data.pathway["short"].lengths > 3))[:12]
    rows = on_device(data, used, np.ones(len(data)), PretrainConfig())
    batch = {k: v[:12].long() if v.dtype == torch.int32 else v[:12] for k, v in rows.items()}
    own = data.batch(used, 8, 16) | {"weight": torch.ones(12)}
    recipe = Recipe(event_weight=0.5)
    expected, _ = PretrainLoss(model, 1.0, event_weight=0.5)(own, own["target_mask"].sum())
    torch.testing.assert_close(loss_of(model, batch, recipe), expected, rtol=1e-5, atol=1e-5)
    assert loss_of(model, batch, Recipe()) < expected - 1
    less = forgetful(batch, Recipe(drop_events=0.4))
    assert less["next_mask"] is batch["short_mask"]
    alone = loss_of(model, less | {"next_mask": less["short_mask"]}, recipe)  # of pairs of which both are left
    assert loss_of(model, less, recipe) > alone + 0.1


def test_what_is_forgotten_is_a_share_and_nothing_is_made_up(set_up) -> None:
    _, data = set_up
    rows = on_device(data, np.arange(len(data)), np.ones(len(data)), PretrainConfig())
    assert forgetful(rows, Recipe()) is rows
    torch.manual_seed(0)
    less = forgetful(rows, Recipe(drop_events=0.4, drop_static=0.25))
    for name in ("short_mask", "positive_mask", "lifelong_mask"):
        assert not (less[name] & ~rows[name]).any()
    kept = sum(int(less[n].sum()) for n in ("short_mask", "lifelong_mask"))
    before = sum(int(rows[n].sum()) for n in ("short_mask", "lifelong_mask"))
    assert before > 500 and abs(kept / before - 0.6) < 0.08
    known = rows["static"] != 0
    assert abs(float((less["static"][known] != 0).float().mean()) - 0.75) < 0.08
    assert (less["static"][less["static"] != 0] == rows["static"][less["static"] != 0]).all()
    assert less["targets"] is rows["targets"]


def test_every_pass_holds_every_row_once_and_the_last_goes_by_day() -> None:
    now = np.repeat([3, 1, 2], 5) * 86_400
    batches = plan(15, now, Recipe(epochs=2, batch=4), seed=1)
    assert len(batches) == 8
    for one in (batches[:4], batches[4:]):
        assert sorted(np.concatenate(one).tolist()) == [*range(15), 15]  # 15: the row of padding
    last = np.concatenate(batches[4:])[:15]
    assert (np.diff(now[last]) >= 0).all()


def test_a_first_day_learns_and_can_be_continued(world, tmp_path: Path) -> None:  # noqa: F811
    def loss_after(epochs: int) -> float:
        out = tmp_path / str(epochs)
        recipe = Recipe(epochs=epochs, batch=16, d_model=32)
        model = first_day(
            training_sets=list(world.training), tokenizer=world.tokenizer, out=out, recipe=recipe, seed=1, device="cpu"
        )
        data = TrainingSet(list(world.training), Tokenizer.load(world.tokenizer).catalogue, model.config)
        batch = data.batch(np.flatnonzero(data.targets.lengths), 8)
        batch["weight"] = torch.ones(len(batch["targets"]))
        with torch.no_grad():
            return PretrainLoss(model, 1.0)(batch, batch["target_mask"].sum())[0].item()

    assert loss_after(4) < loss_after(1) - 0.3
    tok = Tokenizer.load(world.tokenizer)
    model = load_model(tmp_path / "4", tok)
    optimizer, names = make_optimizer(model, lr_sparse=1e-3, lr_dense=1e-3, weight_decay=0)
    load_optimizer(optimizer, names, tmp_path / "4" / "optimizer.safetensors", len(tok.catalogue))


def test_a_training_whose_loss_goes_up_ends_with_an_error(world, tmp_path: Path) -> None:  # noqa: F811
    recipe = Recipe(epochs=4, batch=16, d_model=32, rate=300.0)
    with pytest.raises(RuntimeError, match=r"the loss went from \d+\.\d+ to .* steps: lower the recipe's rate$"):
        first_day(
            training_sets=list(world.training),
            tokenizer=world.tokenizer,
            out=tmp_path / "out",
            recipe=recipe,
            seed=1,
            device="cpu",
        )
    assert not (tmp_path / "out").exists()


def test_a_later_day_goes_on_from_the_one_before(world, tmp_path: Path) -> None:  # noqa: F811
    first, second = sorted(world.training)[:2]
    tok, recipe = Tokenizer.load(world.tokenizer), Recipe(epochs=2, batch=16, d_model=32, event_weight=0.25)
    same = {"tokenizer": world.tokenizer, "recipe": recipe, "seed": 1, "device": "cpu"}
    before = first_day(training_sets=[first], out=tmp_path / "first", **same)
    old = {name: p.clone() for name, p in before.named_parameters()}

    def loss(model: OneRec) -> float:
        data = TrainingSet([second], tok.catalogue, model.config)
        batch = data.batch(np.flatnonzero(data.targets.lengths), 8)
        batch["weight"] = torch.ones(len(batch["targets"]))
        with torch.no_grad():
            return PretrainLoss(model, 1.0)(batch, batch["target_mask"].sum())[0].item()

    models = {
        rate: later_day(
            training_set=second, previous=tmp_path / "first", out=tmp_path / str(rate), passes=4, rate=rate, **same
        )
        for rate in (0.1, 0.5)
    }
    assert loss(models[0.5]) < loss(models[0.1]) < loss(before)
    moved = {
        rate: max(float((p - old[name]).abs().max()) for name, p in model.named_parameters())
        for rate, model in models.items()
    }
    assert 0 < moved[0.1] < moved[0.5]
    one, two = (load_model(tmp_path / name, tok).config for name in ("first", "0.1"))
    assert one == two
    optimizer, names = make_optimizer(models[0.1], lr_sparse=1e-3, lr_dense=1e-3, weight_decay=0)
    load_optimizer(optimizer, names, tmp_path / "0.1" / "optimizer.safetensors", len(tok.catalogue))
    steps = {int(optimizer.state[p]["step"]) for p in models[0.1].parameters()}
    assert min(steps) > 4  # the moments of the day before were carried on
