"""Checkpoints: exact round trips, growth with the catalogue, and pairs that must not be mixed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.onerec.features import Catalogue
from models.tokenizer.sid_table import sid_digest
from models.tokenizer.trie import Trie
from models.training.checkpoint import (
    Tokenizer,
    grow_items,
    load_model,
    load_optimizer,
    save_model,
    save_optimizer,
)
from models.training.losses import item_loss, ntp_loss
from models.training.optimizer import make_optimizer
from tests.models.conftest import random_batch, small_model

RATES = {"lr_sparse": 3e-3, "lr_dense": 1.5e-3, "weight_decay": 0.05}


def _grown(tokenizer: Tokenizer, extra: int) -> Tokenizer:
    """The tokenizer of the next day: `extra` new items behind the known ones."""
    known = {tuple(row) for row in tokenizer.sid_NL.tolist()}
    free = [(a, b, c) for a in range(4) for b in range(4) for c in range(4) if (a, b, c) not in known][:extra]
    sid = np.concatenate([tokenizer.sid_NL, np.array(free)])
    return Tokenizer(Catalogue(np.arange(len(sid)) * 10), sid, Trie.build(sid, 4), 4)


def _trained(folder):
    """A model after two optimiser steps, saved with its optimiser."""
    model, tokenizer = small_model()
    optimizer, names = make_optimizer(model.train(), **RATES)
    targets, weight = torch.tensor([[1, 2]]), torch.ones(1, 2)
    for seed in range(2):
        z, mask = model.encode(random_batch(model, [(3, 2, 1)], seed))
        loss = ntp_loss(model, targets, weight, z, mask)[0] + item_loss(model, targets, weight, z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for layer in model.decoder:
            layer.ffn.balance()
    save_model(model, folder)
    save_optimizer(optimizer, names, folder)
    return model, tokenizer, optimizer


def test_model_round_trip_is_bit_identical(tmp_path):
    model, tokenizer, _ = _trained(tmp_path)
    again = load_model(tmp_path, tokenizer)
    assert again.config == model.config
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys() and "decoder.0.ffn.bias_E" in state
    assert all(torch.equal(state[k], loaded[k]) for k in state)
    (tmp_path / "b").mkdir()
    save_model(again, tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_optimizer_round_trip_continues_exactly(tmp_path):
    model, tokenizer, optimizer = _trained(tmp_path)
    again = load_model(tmp_path, tokenizer).train()
    other, names = make_optimizer(again, **RATES)
    load_optimizer(other, names, tmp_path / "optimizer.safetensors", 20)
    for one, opt in ((model, optimizer), (again, other)):
        z, mask = one.encode(random_batch(one, [(3, 2, 1)], 7))
        opt.zero_grad()
        ntp_loss(one, torch.tensor([[3]]), torch.ones(1, 1), z, mask)[0].backward()
        opt.step()
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters()):
        assert torch.equal(a, b), name


def test_new_items_start_at_zero_and_the_known_keep_their_rows(tmp_path):
    model, tokenizer, _ = _trained(tmp_path)
    grown = load_model(tmp_path, _grown(tokenizer, 3))
    assert grown.config == dataclasses.replace(model.config, items=23)
    assert torch.equal(grown.item_residual.weight[:20], model.item_residual.weight[:20])
    assert not grown.item_residual.weight[20:23].any()
    assert torch.equal(grown.item_residual.weight[23], model.item_residual.weight[20])  # the unknown item's
    assert torch.equal(grown.item_bias_N, torch.cat([model.item_bias_N, torch.zeros(3)]))
    with torch.no_grad():
        z, _ = model.eval().encode(random_batch(model, [(3, 2, 1)]))
        torch.testing.assert_close(grown.item_logits(z)[:, :20], model.item_logits(z))
    optimizer, names = make_optimizer(grown, **RATES)
    load_optimizer(optimizer, names, tmp_path / "optimizer.safetensors", 23)
    moments = optimizer.state[grown.item_residual.weight]
    assert moments["exp_avg"].shape == (24, 16) and not moments["exp_avg"][20:23].any()
    assert moments["exp_avg"][:20].any()


@pytest.mark.parametrize(
    "name, rows, grown",
    [
        ("item_residual.weight", [1, 2, 9], [1, 2, 0, 0, 9]),
        ("bag.weight", [1, 2, 9], [1, 2, 0, 0, 9]),
        ("item_bias_N", [1, 2], [1, 2, 0, 0]),
        ("code.0.weight", [1, 2], [1, 2]),
    ],
)
def test_grow_items(name, rows, grown):
    value = torch.tensor(rows)[:, None].repeat(1, 2)
    assert grow_items(name, value, 4)[:, 0].tolist() == grown
    assert grow_items(name, value, 2) is value


def test_a_tokenizer_that_does_not_belong_is_refused_by_name(tmp_path):
    _, tokenizer, _ = _trained(tmp_path)
    fewer = dataclasses.replace(tokenizer, catalogue=Catalogue(np.arange(19)), sid_NL=tokenizer.sid_NL[:19])
    with pytest.raises(ValueError, match=r"trained on 20 items x 4 codes, the tokenizer has 19 x 4"):
        load_model(tmp_path, fewer)
    with pytest.raises(ValueError, match=r"the tokenizer has 20 x 8.*same release"):
        load_model(tmp_path, dataclasses.replace(tokenizer, codebook_size=8))


def test_a_tokenizer_of_the_same_size_with_other_codes_is_refused(tmp_path):
    _, tokenizer, _ = _trained(tmp_path)
    for rows in (slice(None), slice(20)):  # also one that has grown since
        sid = _grown(tokenizer, 2).sid_NL.copy()
        sid[:20] = sid[:20][::-1]
        other = Tokenizer(Catalogue(np.arange(len(sid[rows]))), sid[rows], Trie.build(sid[rows], 4), 4)
        pair = f"another tokenizer.*{sid_digest(tokenizer.sid_NL)}.*{sid_digest(sid[:20])}"
        with pytest.raises(ValueError, match=pair):
            load_model(tmp_path, other)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")  # a file without the digest
    with pytest.raises(ValueError, match=r"another tokenizer.*\(not named\)"):
        load_model(tmp_path, tokenizer)


def test_a_grown_model_belongs_to_the_grown_tokenizer(tmp_path):
    _, tokenizer, _ = _trained(tmp_path)
    grown = _grown(tokenizer, 3)
    save_model(load_model(tmp_path, grown), tmp_path)
    assert load_model(tmp_path, grown).config.items == 23
    sid = grown.sid_NL.copy()
    sid[[21, 22]] = sid[[22, 21]]
    with pytest.raises(ValueError, match="another tokenizer"):
        load_model(tmp_path, Tokenizer(grown.catalogue, sid, Trie.build(sid, 4), 4))


def test_moments_that_the_file_lacks_are_named(tmp_path):
    _, tokenizer, _ = _trained(tmp_path)
    path = tmp_path / "optimizer.safetensors"
    saved = load_file(path)
    for key in ("exp_avg/bos_D", "step/item_bias_N"):
        save_file({k: v for k, v in saved.items() if k != key}, path)
        optimizer, names = make_optimizer(load_model(tmp_path, tokenizer), **RATES)
        with pytest.raises(ValueError, match=key):
            load_optimizer(optimizer, names, path, 20)


def test_a_parameter_that_never_had_a_gradient_starts_afresh(tmp_path):
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in "ab")
    names = {id(a): "a", id(b): "b"}
    optimizer = torch.optim.AdamW([a, b], fused=True)
    a.sum().backward()
    optimizer.step()
    save_optimizer(optimizer, names, tmp_path)
    again = torch.optim.AdamW([a, b], fused=True)
    load_optimizer(again, names, tmp_path / "optimizer.safetensors", 0)
    assert again.state[a]["step"] == 1 and again.state[b]["step"] == 0 and not again.state[b]["exp_avg"].any()
    b.sum().backward()
    again.step()
    assert b.max() < 1


def test_moments_follow_their_parameter_to_its_device(tmp_path):
    _trained(tmp_path)
    name = "bos_D"
    elsewhere = torch.nn.Parameter(torch.empty(16, device="meta"))
    optimizer = torch.optim.AdamW([elsewhere])
    load_optimizer(optimizer, {id(elsewhere): name}, tmp_path / "optimizer.safetensors", 20)
    assert {v.device.type for v in optimizer.state[elsewhere].values()} == {"meta"}


def test_tokenizer_directory(tmp_path):
    _, tokenizer = small_model()
    table = {"item_id": tokenizer.catalogue.item_ids} | {f"c{i}": tokenizer.sid_NL[:, i] for i in range(3)}
    pq.write_table(pa.table(table), tmp_path / "sid_table.parquet")
    save_file({f"codebook_{i}": torch.zeros(4, 2) for i in range(3)}, tmp_path / "codebooks.safetensors")
    tokenizer.trie.save(tmp_path / "trie.safetensors")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.codebook_size == 4 and np.array_equal(loaded.sid_NL, tokenizer.sid_NL)
    for wrong in (tokenizer.sid_NL[:19], tokenizer.sid_NL[::-1].copy()):
        Trie.build(wrong, 4).save(tmp_path / "trie.safetensors")
        with pytest.raises(ValueError, match="trie and SID table differ"):
            Tokenizer.load(tmp_path)


def test_files_hold_tensors_only_and_no_copy_of_the_sid_table(tmp_path):
    _trained(tmp_path)
    assert "sid_NL" not in load_file(tmp_path / "model.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json", "optimizer.safetensors"}
