"""Pre-training end to end on a tiny source: it learns, repeats by seed, resumes, refuses what it cannot learn from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from models.tokenizer.refresh import refresh_tokenizer
from models.training import pretrain as pretraining
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import TrainingSet
from models.training.losses import event_loss
from models.training.pretrain import PretrainConfig, pretrain
from models.training.pretrain_config import changed_knobs
from tests.models.conftest import CLICK, Row, World, simulate_days, write_items, write_training_set
from tests.models.training.tiny import tiny, train, with_event_head

FILES = {"model.safetensors", "config.json", "optimizer.safetensors", "metrics.json"}
CONFIG = PretrainConfig(min_steps=20, batch_size=16)


def _pretrain(world: World, out: Path, **changes) -> dict:
    out.mkdir()
    arguments = {
        "training_sets": world.training,
        "tokenizer": world.tokenizer,
        "previous": None,
        "seed": 5,
        "progress": lambda _: None,
        "config": CONFIG,
    }
    return pretrain(out=out, **(arguments | changes))


def test_loss_falls_and_the_same_seed_gives_the_same_bytes(world, tmp_path):
    metrics = _pretrain(world, tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} == FILES
    loss = [point["loss"] for point in metrics["loss"]]
    assert sum(loss[-3:]) < 0.8 * sum(loss[:3])
    assert loss[0] == pytest.approx(sum(metrics["loss"][0][f"loss_c{i}"] for i in range(3)))
    assert metrics["loss"][-1]["step"] == metrics["steps"]
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["loss"] == metrics["loss"]

    _pretrain(world, tmp_path / "b")
    _pretrain(world, tmp_path / "c", seed=6)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_a_later_day_resumes_model_and_optimiser_and_takes_new_items(world, tmp_path):
    _pretrain(world, tmp_path / "first", training_sets=world.training[:1])
    items, tokenizer = write_items(tmp_path / "items.parquet", list(range(52))), tmp_path / "tokenizer"
    tokenizer.mkdir()
    day = simulate_days(tmp_path / "features", users=32, items=52, days=2, shown=8, seed=2)[1:]
    refresh_tokenizer(
        items=items, training_sets=day, previous=world.tokenizer, out=tokenizer, seed=3, progress=lambda _: None
    )
    metrics = _pretrain(world, tmp_path / "second", training_sets=day, tokenizer=tokenizer, previous=tmp_path / "first")
    loss = [point["loss"] for point in metrics["loss"]]
    scratch = _pretrain(world, tmp_path / "scratch", training_sets=day, tokenizer=tokenizer)
    assert loss[0] < scratch["loss"][0]["loss"]  # it starts where the day before ended
    first, second = (load_file(tmp_path / n / "optimizer.safetensors") for n in ("first", "second"))
    assert second["step/bos_D"] == first["step/bos_D"] + metrics["steps"]
    model = load_model(tmp_path / "second", Tokenizer.load(tokenizer))
    assert model.config.items == 52
    old = load_file(tmp_path / "first" / "model.safetensors")["bos_D"]
    assert not torch.equal(model.bos_D, old)


@pytest.mark.parametrize("refit", [True, False])
def test_the_day_of_a_refit_trains_at_a_rate_of_its_own(world, tmp_path, monkeypatch, refit):
    """Codes have moved: a later day's share of the rate would not follow them."""
    _pretrain(world, tmp_path / "first", training_sets=world.training[:1])
    (tmp_path / "tokenizer").mkdir()
    refresh_tokenizer(
        items=world.items, training_sets=world.training, previous=world.tokenizer, out=tmp_path / "tokenizer", seed=9,
        refit=refit, progress=lambda _: None,
    )  # fmt: skip
    rates: list[float] = []
    monkeypatch.setattr(pretraining, "set_rate", lambda optimizer, rate: rates.append(rate))
    config = dataclasses.replace(CONFIG, lr_daily_scale=0.25, lr_refit_scale=0.5)
    more = {"tokenizer": tmp_path / "tokenizer", "previous": tmp_path / "first", "config": config}
    _pretrain(world, tmp_path / "second", training_sets=world.training[1:], **more)
    carry = Tokenizer.load(tmp_path / "tokenizer").carry
    assert (carry is not None and carry.refit) == refit
    assert max(rates) == pytest.approx(0.5 if refit else 0.25)


def test_a_model_with_an_event_head_learns_from_every_event_and_goes_on_the_next_day(world, tmp_path):
    def run(name: str, **changes) -> list[float]:
        arguments = {"config": CONFIG, "build": with_event_head}
        return [point["loss"] for point in train(world, tmp_path / name, **(arguments | changes))["loss"]]

    @torch.no_grad()
    def of_events(name: str) -> float:
        model = load_model(tmp_path / name, tok := Tokenizer.load(world.tokenizer)).eval()
        batch = TrainingSet(world.training, tok.catalogue, model.config).batch(np.arange(64, 128), 8)
        weight = {"weight": torch.ones(64)}
        return event_loss(model, batch | weight, model.encode(batch)[0], batch["short_mask"].sum()).item()

    loss = run("first")
    run("without", config=dataclasses.replace(CONFIG, event_loss_weight=0.0))
    assert of_events("first") < of_events("without")
    items, tokenizer = write_items(tmp_path / "items.parquet", list(range(52))), tmp_path / "tokenizer"
    tokenizer.mkdir()
    day = simulate_days(tmp_path / "features", users=32, items=52, days=3, shown=8, seed=2)[2:]
    refresh_tokenizer(
        items=items, training_sets=day, previous=world.tokenizer, out=tokenizer, seed=3, progress=lambda _: None
    )
    later = run("later", training_sets=day, tokenizer=tokenizer, previous=tmp_path / "first")
    assert later[0] < loss[0]
    model = load_model(tmp_path / "later", Tokenizer.load(tokenizer))
    assert model.config.event_head and model.config.items == 52
    old = load_file(tmp_path / "first" / "model.safetensors")["event_query.weight"]
    assert not torch.equal(model.event_query.weight, old)


def test_an_event_head_trains_without_a_short_pathway(world, tmp_path):
    config = PretrainConfig(min_steps=4, batch_size=16, inputs=("static", "positive"))
    metrics = train(world, tmp_path / "a", config, build=with_event_head)
    assert metrics["loss"][-1]["loss"] < metrics["loss"][0]["loss"]


def test_a_wrong_tokenizer_is_refused(world, tmp_path):
    _pretrain(world, tmp_path / "a", training_sets=world.training[:1], config=PretrainConfig(min_steps=1))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    refresh_tokenizer(
        items=write_items(tmp_path / "items.parquet", list(range(20))),
        training_sets=world.training,
        previous=None,
        out=tokenizer,
        seed=3,
        progress=lambda _: None,
    )
    with pytest.raises(ValueError, match="48 items x 16 codes, the tokenizer has 20 x 16"):
        _pretrain(world, tmp_path / "b", tokenizer=tokenizer, previous=tmp_path / "a")


def test_a_small_log_is_passed_over_until_the_steps_are_enough(world, tmp_path):
    once = _pretrain(world, tmp_path / "a", config=PretrainConfig(min_steps=1, batch_size=16))
    often = _pretrain(world, tmp_path / "b", config=PretrainConfig(min_steps=2 * once["steps"] + 1, batch_size=16))
    capped = _pretrain(world, tmp_path / "c", config=PretrainConfig(min_steps=999, max_epochs=3, batch_size=16))
    assert (
        capped["epochs"] == 3
        and once["epochs"] == 1
        and often["epochs"] >= 2
        and often["targets"] == often["epochs"] * once["targets"]
    )


def test_rows_without_a_positive_are_refused(world, tmp_path):
    rows = [Row(user, shown=[[3, CLICK, 255, 1, 1]]) for user in range(4)]
    path = write_training_set(tmp_path / "day.parquet", rows)
    with pytest.raises(ValueError, match="no positive impression"):
        _pretrain(world, tmp_path / "a", training_sets=[path])


def test_an_empty_day_is_refused(world, tmp_path):
    path = write_training_set(tmp_path / "day.parquet", [])
    with pytest.raises(ValueError, match="no training rows"):
        _pretrain(world, tmp_path / "a", training_sets=[path])


def test_a_loss_that_is_not_finite_stops_the_run(world, tmp_path):
    with pytest.raises(FloatingPointError, match="at step"):
        _pretrain(world, tmp_path / "a", config=PretrainConfig(min_steps=20, lr_dense=1e30, lr_sparse=1e30))
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_users_without_any_history_train(world, tmp_path):
    """The first day of a source without a history: every pathway is empty."""
    table = pq.read_table(world.training[0])
    assert all(not x for x in table["short_item_id"].to_pylist())
    assert _pretrain(world, tmp_path / "a", training_sets=world.training[:1])["steps"] > 0


def test_bf16_computes_and_float32_stays_in_the_weights(world, tmp_path):
    config = PretrainConfig(min_steps=20, batch_size=16, precision="bf16")
    metrics, plain = train(world, tmp_path / "a", config), train(world, tmp_path / "b", CONFIG)
    assert {t.dtype for t in load_file(tmp_path / "a/model.safetensors").values()} == {torch.float32}
    losses = [[p["loss"] for p in m["loss"]] for m in (metrics, plain)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.03)


def test_recomputed_activations_change_nothing(world, tmp_path):
    short = {"min_steps": 3, "batch_size": 32}
    plain, other = (
        train(world, tmp_path / name, PretrainConfig(**short, recompute=recompute))
        for name, recompute in (("a", False), ("b", True))
    )
    assert [p["loss"] for p in other["loss"]] == pytest.approx([p["loss"] for p in plain["loss"]], rel=1e-6)


def test_compile_is_refused_where_it_cannot_trace(world, tmp_path):
    with pytest.raises(ValueError, match="compile needs a CUDA device"):
        train(world, tmp_path / "a", PretrainConfig(compile=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("build", [tiny, with_event_head])
def test_compiled_training_is_the_same_training(world, tmp_path, build):
    short = {"min_steps": 10, "batch_size": 32}
    plain, other = (
        train(world, tmp_path / name, PretrainConfig(**short, compile=compiled), device="cuda", build=build)
        for name, compiled in (("a", False), ("b", True))
    )
    assert [p["loss"] for p in other["loss"]] == pytest.approx([p["loss"] for p in plain["loss"]], rel=0.02)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"precision": "fp8"}, "precision is 'fp8'; choose auto, bf16 or float32"),
        ({"inputs": ("short", "dreams")}, r"inputs \['dreams'\] are no pathways"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"max_epochs": 0}, "max_epochs is 0; it must be at least 1"),
        ({"balance_loss": 0.1, "recompute": True}, "leave one of them out"),
    ],
)
def test_wrong_knobs_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        PretrainConfig(**changes)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"unknown": 1}', "no knob is named 'unknown' (given as 1); choose from min_steps, max_epochs, batch_size"),
        ('{"batch_size"', "is no JSON (Expecting ':' delimiter: line 1 column 14"),
        ("[16]", "'[16]' is no JSON object; write it as {\"batch_size\": 256}"),
        ('{"batch_size": "16"}', 'batch_size is "16"; write it in the form of its default, 128'),
        ('{"compile": 1}', "compile is 1; write it in the form of its default, false"),
        ('{"inputs": ["dreams"]}', "inputs ['dreams'] are no pathways; choose from"),
        ('{"accumulate": 0}', "accumulate is 0; it must be at least 1"),
    ],
)
def test_a_wrong_config_of_the_command_is_refused_in_words(text, said, monkeypatch, capsys):
    words = ["pretrain", "--training-sets", "none", "--tokenizer", "none", "--out", "none", "--config", text]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="2"):
        pretraining.main()
    error = capsys.readouterr().err
    assert "argument --config: " in error and said in error


def test_a_config_of_the_command_changes_the_named_knobs():
    assert changed_knobs("{}") == PretrainConfig()
    changed = changed_knobs('{"inputs": ["short", "positive"], "event_loss_weight": 1, "compile": true}')
    assert changed == PretrainConfig(inputs=("short", "positive"), event_loss_weight=1.0, compile=True)


def test_fewer_pathways_train_another_model(world, tmp_path):
    all_of, one = (
        train(world, tmp_path / name, PretrainConfig(min_steps=4, batch_size=16, inputs=inputs))
        for name, inputs in (("all", ("static", "short", "positive", "lifelong")), ("one", ("positive",)))
    )
    assert all_of["loss"] != one["loss"] and all_of["targets"] == one["targets"]
