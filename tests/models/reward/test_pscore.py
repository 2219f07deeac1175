"""P-Score: targets and masks, the loss against a loop, the stopped gradient, users without history, files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.onerec.features import LABELS, Catalogue
from models.reward.pscore import WEIGHTS, PScore, PScoreConfig, p_score_loss, targets_of
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer, sid_digest
from tests.models.conftest import random_batch, small_model, small_sids

HATE = LABELS.index("hate")
LENGTHS = [(5, 6, 7), (0, 0, 0), (2, 3, 0)]


def _model(items: int = 20) -> tuple[PScore, Tokenizer]:
    torch.manual_seed(0)
    sid = small_sids(items, 4, 0)
    model = PScore(PScoreConfig(codebook_size=4, items=items, static_features=3), torch.from_numpy(sid)).eval()
    with torch.no_grad():
        model.item_residual.weight.normal_(std=0.3)
    return model, Tokenizer(Catalogue(np.arange(items)), sid, Trie.build(sid, 4), 4)


def _batch(lengths=tuple(LENGTHS), seed: int = 0) -> dict[str, torch.Tensor]:
    return random_batch(small_model()[0], list(lengths), seed)


def test_targets_are_the_bits_with_hate_inverted_and_unknown_masked():
    label = torch.tensor([[0, 0b1, 1 << HATE, 255]])
    known = torch.tensor([[255, 0b11, 255 - (1 << HATE), 0]])
    y, available = targets_of(label, known)
    for m in range(4):
        for o in range(len(LABELS)):
            bit = bool(int(label[0, m]) >> o & 1)
            assert y[0, m, o] == float(bit != (o == HATE))
            assert available[0, m, o] == float(int(known[0, m]) >> o & 1)


def test_every_objective_has_a_positive_weight():
    assert set(WEIGHTS) == set(LABELS) and min(WEIGHTS.values()) > 0


def test_loss_equals_a_loop_in_float64():
    B, M, O = 3, 4, len(LABELS)
    objectives, fused = torch.randn(B, M, O, dtype=torch.float64), torch.randn(B, M, dtype=torch.float64)
    y, known = (torch.randint(2, (B, M, O)).double() for _ in range(2))
    known[..., 2] = 0  # an objective that nobody logs

    def bce(logit: float, target: float) -> float:
        p = 1 / (1 + np.exp(-logit))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))

    expected = 0.0
    for o, name in enumerate(LABELS):
        cells = [(b, m) for b in range(B) for m in range(M) if known[b, m, o]]
        if not cells:
            continue
        tower = np.mean([bce(objectives[c][o].item(), y[c][o].item()) for c in cells])
        shared = np.mean([bce(fused[c].item(), y[c][o].item()) for c in cells])
        expected += tower + WEIGHTS[name] / sum(WEIGHTS.values()) * shared
    assert p_score_loss(objectives, fused, y, known).item() == pytest.approx(expected, rel=1e-6)


def test_unknown_labels_have_neither_value_nor_gradient():
    objectives = torch.randn(2, 3, len(LABELS), requires_grad=True)
    fused = torch.randn(2, 3, requires_grad=True)
    y, known = torch.randint(2, (2, 3, len(LABELS))).float(), torch.zeros(2, 3, len(LABELS))
    known[0, 0, 1] = 1
    loss = p_score_loss(objectives, fused, y, known)
    loss.backward()
    assert (objectives.grad != 0).sum() == 1 and (fused.grad != 0).sum() == 1
    other = torch.where(known > 0, y, 1 - y)
    assert p_score_loss(objectives, fused, other, known).item() == loss.item()


def test_the_one_score_sends_no_gradient_into_the_towers_but_reaches_user_and_item():
    model, _ = _model()
    _, fused = model(_batch(), torch.tensor([[1, 2]] * 3))
    fused.sum().backward()
    assert all(p.grad is None for module in (model.tower, model.tower_out) for p in module.parameters())
    for p in (model.fusion[0].weight, model.item_residual.weight, model.static.weight, model.kv.weight):
        assert p.grad is not None and p.grad.any()
    towers = len(LABELS) * model.config.tower_dim
    assert model.fusion[0].weight.grad[:, :towers].any(), "the fusion reads the towers' hidden states"


def test_each_tower_learns_from_its_own_objective_only():
    model, _ = _model()
    objectives, _ = model(_batch(), torch.tensor([[1, 2]] * 3))
    objectives[..., 3].sum().backward()
    for o in range(len(LABELS)):
        assert bool(model.tower[o][0].weight.grad.any()) == (o == 3)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [((0, 0, 0),), ((0, 0, 0), (0, 0, 4)), ((0, 0, 0), (3, 2, 0))])
def test_users_without_history_are_defined(lengths):
    model, _ = _model()
    batch = _batch(lengths)
    objectives, fused = model(batch, torch.tensor([[1, 20]] * len(lengths)))  # 20: the unknown item
    assert torch.isfinite(objectives).all() and torch.isfinite(fused).all()
    item = model.item_vector(torch.tensor([1, 20]))
    h = torch.zeros(1, batch["short"].shape[1] + batch["positive"].shape[1], 32)
    mask = torch.zeros(1, h.shape[1], dtype=torch.bool)
    assert not model._target_attention(item[None], h, mask).any()


@torch.no_grad()
def test_padding_and_other_candidates_change_nothing():
    model, _ = _model()
    batch, other = _batch(), _batch(seed=4)
    candidate = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    _, fused = model(batch, candidate)
    padded = {**batch}
    for name in ("short", "positive"):
        padded[name] = torch.where(batch[f"{name}_mask"][..., None], batch[name], other[name])
    torch.testing.assert_close(model(padded, candidate)[1], fused, rtol=0, atol=0)
    torch.testing.assert_close(model(batch, candidate[:, 1:2])[1][:, 0], fused[:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score(batch, candidate), fused.sigmoid())
    assert not torch.allclose(model({**batch, "short": other["short"]}, candidate)[1], fused, atol=1e-4)


def test_save_and_load_exactly_and_grow_with_the_catalogue(tmp_path):
    model, tokenizer = _model()
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


def test_another_tokenizer_is_refused(tmp_path):
    model, tokenizer = _model()
    model.save(tmp_path)
    for wrong in (
        dataclasses.replace(tokenizer, codebook_size=8),
        dataclasses.replace(tokenizer, catalogue=Catalogue(np.arange(19)), sid_NL=tokenizer.sid_NL[:19]),
    ):
        with pytest.raises(ValueError, match="another tokenizer"):
            PScore.load(tmp_path, wrong)


def test_a_tokenizer_of_the_same_size_with_other_codes_is_refused(tmp_path):
    model, tokenizer = _model()
    model.save(tmp_path)
    sid = tokenizer.sid_NL[::-1].copy()
    other = Tokenizer(tokenizer.catalogue, sid, Trie.build(sid, 4), 4)
    with pytest.raises(ValueError, match=f"another tokenizer.*{sid_digest(tokenizer.sid_NL)}.*{sid_digest(sid)}"):
        PScore.load(tmp_path, other)
    save_file(load_file(tmp_path / "reward.safetensors"), tmp_path / "reward.safetensors")  # a file without the digest
    with pytest.raises(ValueError, match="another tokenizer"):
        PScore.load(tmp_path, tokenizer)


@pytest.mark.parametrize("change", [{"towre_dim": 8}, {"tower_dim": None}])
def test_a_configuration_of_another_version_is_refused_by_name(tmp_path, change):
    model, tokenizer = _model()
    model.save(tmp_path)
    raw = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(ValueError, match=next(iter(change))):
        PScore.load(tmp_path, tokenizer)
