"""P-Score: the stopped gradient, towers kept apart, users without history, padding, files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.onerec.features import LABELS, Catalogue
from models.reward.pscore import PScore
from models.tokenizer.sid_table import sid_digest
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer
from tests.models.reward.conftest import batch_of, pscore


@pytest.mark.parametrize("stopped", [True, False])
def test_the_one_scores_gradient_enters_the_towers_only_when_allowed(stopped):
    model, _ = pscore(stop_gradient=stopped)
    _, fused = model(batch_of(), torch.tensor([[1, 2]] * 3))
    fused.sum().backward()
    assert model.tower_out_OT.grad is None and model.tower_bias_O.grad is None
    assert (model.tower.weight.grad is None) == stopped
    for p in (model.fusion[0].weight, model.item_residual.weight, model.static.weight, model.kv.weight):
        assert p.grad is not None and p.grad.any()
    towers = len(LABELS) * model.config.tower_dim
    assert model.fusion[0].weight.grad[:, :towers].any(), "the fusion reads the towers' hidden states"


@torch.no_grad()
def test_stopping_the_gradient_changes_no_score():
    (stopped, _), (open_, _) = pscore(), pscore(stop_gradient=False)
    candidate = torch.tensor([[1, 2]] * 3)
    assert torch.equal(stopped.score(batch_of(), candidate), open_.score(batch_of(), candidate))


def test_each_tower_learns_from_its_own_objective_only():
    model, _ = pscore()
    objectives, _ = model(batch_of(), torch.tensor([[1, 2]] * 3))
    objectives[..., 3].sum().backward()
    own = model.tower.weight.grad.unflatten(0, (len(LABELS), -1)).flatten(1).any(1)
    for grad in (own, model.tower_out_OT.grad.any(1), model.tower_bias_O.grad != 0):
        assert grad.tolist() == [o == 3 for o in range(len(LABELS))]


@torch.no_grad()
@pytest.mark.parametrize("search", ["hard", "soft"])
@pytest.mark.parametrize("lengths", [((0, 0, 0),), ((0, 0, 0), (0, 0, 4)), ((0, 0, 0), (3, 2, 0))])
def test_users_without_history_are_defined(lengths, search):
    model, _ = pscore(search=search)
    batch = batch_of(lengths)
    objectives, fused = model(batch, torch.tensor([[1, 20]] * len(lengths)))  # 20: the unknown item
    assert torch.isfinite(objectives).all() and torch.isfinite(fused).all()
    item = model.item_vector(torch.tensor([1, 20]))
    h = torch.zeros(1, 5, 32)
    mask = torch.zeros(1, h.shape[1], dtype=torch.bool)
    assert not model._target_attention(item[None], h, mask).any()


@torch.no_grad()
@pytest.mark.parametrize("search", ["hard", "soft"])
def test_padding_and_other_candidates_change_nothing(search):
    model, _ = pscore(search=search, search_k=3)
    batch, other = batch_of(), batch_of(seed=4)
    candidate = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    _, fused = model(batch, candidate)
    padded = {**batch}
    for name in ("short", "positive", "lifelong"):
        padded[name] = torch.where(batch[f"{name}_mask"][..., None], batch[name], other[name])
    torch.testing.assert_close(model(padded, candidate)[1], fused, rtol=0, atol=0)
    torch.testing.assert_close(model(batch, candidate[:, 1:2])[1][:, 0], fused[:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score(batch, candidate), fused.sigmoid())
    assert not torch.allclose(model({**batch, "short": other["short"]}, candidate)[1], fused, atol=1e-4)


def test_save_and_load_exactly_and_grow_with_the_catalogue(tmp_path):
    model, tokenizer = pscore()
    model.save(tmp_path)
    again = PScore.load(tmp_path, tokenizer)
    state = model.state_dict()
    assert again.config == model.config
    assert all(torch.equal(state[k], v) for k, v in again.state_dict().items())
    known = {tuple(r) for r in tokenizer.sid_NL.tolist()}
    new = next(c for c in np.ndindex(4, 4, 4) if c not in known)
    sid = np.concatenate([tokenizer.sid_NL, [new]])
    grown = PScore.load(tmp_path, Tokenizer(Catalogue(np.arange(21)), sid, Trie.build(sid, 4), 4))
    assert grown.config.items == 21
    assert not grown.item_residual.weight[20].any()
    assert torch.equal(grown.item_residual.weight[21], model.item_residual.weight[20])
    assert grown.item_category_N.tolist() == [*model.item_category_N.tolist()[:20], 0, 0]
    candidate = torch.tensor([[1, 2]] * 3)
    assert torch.equal(grown.score(batch_of(), candidate), model.score(batch_of(), candidate))


def test_another_tokenizer_is_refused(tmp_path):
    model, tokenizer = pscore()
    model.save(tmp_path)
    for wrong in (
        dataclasses.replace(tokenizer, codebook_size=8),
        dataclasses.replace(tokenizer, catalogue=Catalogue(np.arange(19)), sid_NL=tokenizer.sid_NL[:19]),
    ):
        with pytest.raises(ValueError, match="another tokenizer"):
            PScore.load(tmp_path, wrong)


def test_a_tokenizer_of_the_same_size_with_other_codes_is_refused(tmp_path):
    model, tokenizer = pscore()
    model.save(tmp_path)
    sid = tokenizer.sid_NL[::-1].copy()
    other = Tokenizer(tokenizer.catalogue, sid, Trie.build(sid, 4), 4)
    with pytest.raises(ValueError, match=f"another tokenizer.*{sid_digest(tokenizer.sid_NL)}.*{sid_digest(sid)}"):
        PScore.load(tmp_path, other)
    save_file(load_file(tmp_path / "reward.safetensors"), tmp_path / "reward.safetensors")  # a file without the digest
    with pytest.raises(ValueError, match="another tokenizer"):
        PScore.load(tmp_path, tokenizer)


@pytest.mark.parametrize("change", [{"towre_dim": 8}, {"tower_dim": None}, {"search": None}])
def test_a_configuration_of_another_version_is_refused_by_name(tmp_path, change):
    model, tokenizer = pscore()
    model.save(tmp_path)
    raw = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(ValueError, match=next(iter(change))):
        PScore.load(tmp_path, tokenizer)
