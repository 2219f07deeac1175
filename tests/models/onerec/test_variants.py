"""Configurations of the same code: lists of items (V1), the lazy decoder (V2), hashed histories, experts everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.onerec.beam_search import beam_search, beam_search_lists
from models.onerec.model import OneRec
from models.onerec.moe import MoE, expert_report
from models.onerec.ranking import rank_items, rank_lists
from models.onerec.sizes import lazy, session
from models.training.losses import ntp_loss
from tests.models.conftest import random_batch, small_model

LENGTHS = [(5, 6, 7), (2, 0, 3), (0, 0, 0), (1, 4, 0)]
LAZY = {"architecture": "lazy_decoder", "encoder_layers": 0, "item_head": False, "decoder_layers": 2}


def _alone(batch: dict[str, torch.Tensor], user: int) -> dict[str, torch.Tensor]:
    out = {"static": batch["static"][user : user + 1]}
    for name in ("short", "positive", "lifelong"):
        mask = batch[f"{name}_mask"][user]
        out[name], out[f"{name}_mask"] = batch[name][user][mask][None], mask[mask][None]
    return out


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        LAZY,
        LAZY | {"kv_heads": 2},
        {"history": "hashed"},
        {"history_bag": True},
        {"event_head": True, "encoder_layers": 2, "history_bag": True},
        {"encoder_moe_layers": 1},
    ],
)
def test_padding_changes_nothing_and_every_pathway_matters(changes):
    model, _ = small_model(**changes)
    batch, codes = random_batch(model, LENGTHS), torch.randint(4, (1, 3, 3))

    def logits(b):
        z, mask = model.encode(b)
        return torch.cat([x.flatten(1) for x in model.code_logits(codes.expand(len(z), -1, -1), z, mask)], 1)

    together = logits(batch)
    for user in range(len(LENGTHS)):
        torch.testing.assert_close(together[user], logits(_alone(batch, user))[0], rtol=1e-4, atol=1e-5)
    other = random_batch(model, LENGTHS, seed=9)
    for name in ("static", "short", "positive", "lifelong"):
        assert not torch.allclose(logits({**batch, name: other[name]})[0], together[0], atol=1e-4), name


@torch.no_grad()
@pytest.mark.parametrize("changes", [LAZY, LAZY | {"kv_heads": 2}, {"session_items": 3}])
def test_decode_step_equals_decode(changes):
    model, _ = small_model(**changes)
    z, mask = model.encode(random_batch(model, LENGTHS))
    kv, L = model.context_kv(z), 3
    codes = torch.randint(4, (len(LENGTHS), 5, model.config.session_items * L - 1))
    whole = model.decode(codes, kv, mask)
    assert whole.shape[2] == model.config.decoder_tokens
    past, taken = None, iter(codes.unbind(-1))
    for place in range(model.config.decoder_tokens):
        code = None if place % (L + 1) == 0 else next(taken)
        hidden, past = model.decode_step(code, place, past, kv, mask)
        torch.testing.assert_close(hidden.expand(-1, 5, -1), whole[:, :, place], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_lazy_attention_by_hand():
    """One layer, one head: softmax of q k^T over the normalised context, which is key and value at once."""
    model, _ = small_model(**LAZY | {"heads": 1, "decoder_layers": 1})
    z, mask = model.encode(random_batch(model, LENGTHS))
    (k, v), layer = model.context_kv(z)[0], model.decoder[0]
    assert k is v and layer.cross_attn.kv is None and z.shape[-1] == model.config.context_dim == 16
    x = torch.randn(len(LENGTHS), 2, 16)
    score = (layer.cross_attn.q(x) @ z.transpose(1, 2) / 4).masked_fill(~mask[:, None], float("-inf"))
    expected = layer.cross_attn.out(score.softmax(-1) @ z)
    torch.testing.assert_close(layer.cross_attn(x, (k, v), mask[:, None, None]), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_grouped_heads_share_their_key():
    model, _ = small_model(**LAZY | {"heads": 4, "kv_heads": 2})
    attn, kv = model.decoder[0].cross_attn, torch.randn(2, 2, 5, 4)
    x = torch.randn(2, 3, 16)
    repeated = kv.repeat_interleave(2, 1)
    torch.testing.assert_close(attn(x, (kv, kv)), attn(x, (repeated, repeated)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_an_item_of_a_list_sees_the_items_before_it_and_no_other():
    model, _ = small_model(session_items=3)
    z, mask = model.encode(random_batch(model, LENGTHS))
    codes = torch.randint(4, (len(LENGTHS), 6, 3))  # two lists a user
    before = torch.stack(model.code_logits(codes, z, mask), 2)
    changed = codes.clone()
    changed[:, 1, 2] = (changed[:, 1, 2] + 1) % 4  # the last code of the first list's second item
    after = torch.stack(model.code_logits(changed, z, mask), 2)
    same = [torch.allclose(after[:, i], before[:, i], atol=1e-6) for i in range(6)]
    assert same == [True, True, False, True, True, True]


@torch.no_grad()
def test_padded_targets_stand_behind_the_list():
    """Targets are right-aligned in a batch: the loss is that of the real ones alone, in lists from the first on."""
    model, _ = small_model(session_items=3)
    z, mask = model.encode(random_batch(model, LENGTHS[:1]))
    targets = torch.tensor([[0, 0, 7, 3, 9, 1]])
    weight = torch.tensor([[0.0, 0, 1, 1, 1, 1]])
    padded, levels = ntp_loss(model, targets, weight, z, mask)
    bare, bare_levels = ntp_loss(model, targets[:, 2:], weight[:, 2:], z, mask)
    torch.testing.assert_close(padded, bare, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(levels, bare_levels, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("items, unwanted", [(2, []), (2, [3, 4]), (3, [])])
def test_a_wide_beam_finds_the_best_lists_of_all(items, unwanted):
    """Against every ordered list of distinct wanted items, scored teacher-forced."""
    model, tokenizer = small_model(items=7, session_items=3)
    model.code_bias_LK.mul_(5)
    z, mask = model.encode(random_batch(model, LENGTHS))
    wanted = [i for i in range(7) if i not in unwanted]
    every = torch.tensor(list(itertools.permutations(wanted, items)))
    sid = model.sid_NL[every]  # [lists, items, 3]
    skip = torch.zeros(len(LENGTHS), 7, dtype=torch.bool)
    skip[:, unwanted] = True
    lists, logp = beam_search_lists(model, z, mask, 300, tokenizer.trie, items, skip)
    for user in range(len(LENGTHS)):
        one = z[user : user + 1].expand(len(every), -1, -1), mask[user : user + 1].expand(len(every), -1)
        levels = model.code_logits(sid, *one)
        picked = [torch.log_softmax(x, -1).gather(2, sid[..., i : i + 1]) for i, x in enumerate(levels)]
        expected, order = torch.cat(picked, -1).sum((1, 2)).sort(descending=True)
        real = torch.isfinite(logp[user])
        assert int(real.sum()) == len(every)
        torch.testing.assert_close(logp[user][real], expected, rtol=1e-4, atol=1e-4)
        found = tokenizer.trie.lookup(lists[user][real])
        assert torch.equal(found, every[order])


def test_ranked_lists_leave_out_what_is_unwanted():
    """The beam's own best list without exclusions; without an item of it, another; and none where too few are left."""
    model, tokenizer = small_model(items=7, session_items=2)
    batch = random_batch(model, LENGTHS)
    z, mask = model.encode(batch)
    lists, logp = beam_search_lists(model, z.detach(), mask, 50, tokenizer.trie, 2)
    best = tokenizer.trie.lookup(lists[:, 0])
    nothing = np.array([7])  # the unknown item: excludes none
    unwanted = [nothing, best[1, :1].numpy(), np.arange(6), nothing]
    ranked = rank_lists(model, batch, tokenizer.trie, unwanted, 2, 50)
    for user in (0, 3):
        assert ranked[user][0].tolist() == best[user].tolist()
        assert ranked[user][1] == pytest.approx(float(logp[user, 0]), rel=1e-5)
    assert len(ranked[1][0]) == 2 and best[1, 0].item() not in ranked[1][0] and ranked[1][1] < float(logp[1, 0])
    assert len(ranked[2][0]) == 0 and ranked[2][1] == float("-inf")


def test_lists_longer_than_the_model_generates_are_refused():
    model, tokenizer = small_model(session_items=2)
    z, mask = model.encode(random_batch(model, LENGTHS))
    with pytest.raises(ValueError, match="generates up to 2"):
        beam_search_lists(model, z, mask, 4, tokenizer.trie, 3)


@torch.no_grad()
def test_a_session_wise_model_ranks_items_by_its_first_place():
    model, tokenizer = small_model(session_items=3, item_head=False)
    batch = random_batch(model, LENGTHS)
    z, mask = model.encode(batch)
    codes, logp = beam_search(model, z, mask, 20, tokenizer.trie)
    one, list_logp = beam_search_lists(model, z, mask, 20, tokenizer.trie, 1)
    assert torch.equal(one[:, :, 0], codes) and torch.equal(list_logp, logp)
    item, score, _ = rank_items(model, batch, tokenizer.trie, 20)  # without an item head: the beam's order
    torch.testing.assert_close(score, logp)
    assert torch.equal(item, tokenizer.trie.lookup(codes))


@pytest.mark.parametrize(
    "changes", [LAZY, {"session_items": 2}, {"history": "hashed"}, {"shared_expert_dim": 8}, {"event_head": True}]
)
def test_every_parameter_gets_a_gradient(changes):
    model, _ = small_model(experts_per_token=4, **changes)
    batch, codes = random_batch(model, LENGTHS), torch.randint(4, (len(LENGTHS), 4, 3))
    z, mask = model.train().encode(batch)
    loss = sum(x.square().sum() for x in model.code_logits(codes, z, mask))
    (loss + (model.item_logits(z).square().sum() if model.config.item_head else 0)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_softmax_affinities_are_used_as_they_are_and_the_shared_expert_sees_every_token():
    moe = MoE(16, experts=6, experts_per_token=2, expert_dim=8, balance_rate=0.01, shared_dim=8, affinity="softmax")
    x = torch.randn(11, 16)
    affinity = torch.softmax(x @ moe.router.weight.T, -1)
    gate, chosen = moe.route(x)
    torch.testing.assert_close(gate, affinity.topk(2).values, rtol=1e-5, atol=1e-6)
    routed = moe(x) - moe.shared(x)
    expert = [
        (torch.nn.functional.silu(x @ g) * (x @ u)) @ d for g, u, d in zip(moe.gate_EDF, moe.up_EDF, moe.down_EFD)
    ]
    table = torch.stack(expert, 1)
    expected = (gate[..., None] * table.gather(1, chosen[..., None].expand(-1, -1, 16))).sum(1)
    torch.testing.assert_close(routed, expected, rtol=1e-4, atol=1e-4)


def test_the_report_names_every_moe_layer():
    model, _ = small_model(encoder_moe_layers=1, decoder_layers=2, decoder_dense_layers=1)
    assert [r["layer"] for r in expert_report(model)] == ["encoder.0.ffn", "decoder.1.ffn"]
    model.train().encode(random_batch(model, LENGTHS))
    encoder, decoder = expert_report(model)
    rows = sum(sum(row[:2]) + 1 + 2 for row in LENGTHS)  # static, short, positive and two lifelong queries each
    assert sum(encoder["load"]) == rows * 2 and encoder["dropped"] == 0 and encoder["imbalance"] >= 1
    assert sum(decoder["load"]) == 0 == decoder["imbalance"]


def test_named_variants():
    model, _ = small_model()
    assert session(model.config, 4).session_items == 4
    changed = lazy(model.config)
    assert changed.lazy and changed.decoder_layers == model.config.encoder_layers + model.config.decoder_layers
    assert not any("encoder" in name or "qformer" in name for name, _ in _parameters(changed))


def _parameters(config):
    with torch.device("meta"):
        return list(OneRec(config, torch.zeros(config.items, 3, dtype=torch.int64)).named_parameters())
