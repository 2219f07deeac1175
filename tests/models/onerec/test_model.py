"""Encoder and decoder: padding changes nothing, targets do not see each other, one step equals the whole prefix."""

from __future__ import annotations

import pytest
import torch

from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.pathways import HISTORIES
from tests.models.conftest import random_batch, small_model

LENGTHS = [(5, 6, 7), (2, 0, 3), (0, 0, 0), (1, 4, 0)]


def _alone(batch: dict[str, torch.Tensor], user: int, lengths: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """One user's row without any padding."""
    out = {"static": batch["static"][user : user + 1]}
    for name, n in zip(("short", "positive", "lifelong"), lengths):
        L = batch[name].shape[1]
        out[name] = batch[name][user : user + 1, L - n :]
        out[f"{name}_mask"] = torch.ones(1, n, dtype=torch.bool)
    return out


@torch.no_grad()
def _outputs(model: OneRec, batch: dict[str, torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
    z, mask = model.encode(batch)
    levels = model.code_logits(codes.expand(len(z), -1, -1), z, mask)
    return torch.cat([model.item_logits(z), *(x.flatten(1) for x in levels)], 1)


def test_a_batch_of_mixed_lengths_equals_each_user_alone():
    model, _ = small_model()
    batch, codes = random_batch(model, LENGTHS), torch.randint(4, (1, 3, 3))
    together = _outputs(model, batch, codes)
    for user, lengths in enumerate(LENGTHS):
        alone = _outputs(model, _alone(batch, user, lengths), codes)
        torch.testing.assert_close(together[user], alone[0], rtol=1e-4, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing_and_real_events_do():
    model, _ = small_model()
    batch, codes = random_batch(model, LENGTHS), torch.randint(4, (1, 2, 3))
    reference = _outputs(model, batch, codes)
    other = random_batch(model, LENGTHS, seed=9)
    padded = {**batch}
    for name in ("short", "positive", "lifelong"):
        padded[name] = torch.where(batch[f"{name}_mask"][..., None], batch[name], other[name])
    assert any(not torch.equal(padded[n], batch[n]) for n in ("short", "positive", "lifelong"))
    torch.testing.assert_close(_outputs(model, padded, codes), reference, rtol=0, atol=0)
    for name in ("static", "short", "positive", "lifelong"):
        changed = _outputs(model, {**batch, name: other[name]}, codes)
        assert not torch.allclose(changed[0], reference[0], atol=1e-4), name


@pytest.mark.parametrize("field", range(7))
def test_every_event_field_reaches_the_output(field):
    model, _ = small_model()
    batch, other = random_batch(model, [(5, 6, 7)]), random_batch(model, [(5, 6, 7)], seed=3)
    changed = {**batch, "short": batch["short"].clone()}
    changed["short"][..., field] = other["short"][..., field]
    codes = torch.randint(4, (1, 2, 3))
    assert not torch.allclose(_outputs(model, batch, codes), _outputs(model, changed, codes), atol=1e-5)


def test_the_order_of_events_matters_and_the_newest_keeps_its_position():
    model, _ = small_model()
    batch, codes = random_batch(model, [(5, 6, 7)]), torch.randint(4, (1, 2, 3))
    turned = {**batch, "short": batch["short"].flip(1)}
    assert not torch.allclose(_outputs(model, batch, codes), _outputs(model, turned, codes), atol=1e-5)


@torch.no_grad()
def test_targets_of_one_user_do_not_see_each_other_nor_later_codes():
    model, _ = small_model()
    batch, codes = random_batch(model, LENGTHS), torch.randint(4, (len(LENGTHS), 3, 3))
    z, mask = model.encode(batch)
    levels = model.code_logits(codes, z, mask)
    single = model.code_logits(codes[:, 1:2], z, mask)
    for level in range(3):
        torch.testing.assert_close(levels[level][:, 1:2], single[level], rtol=1e-4, atol=1e-5)
    for changed_level in range(3):
        other = codes.clone()
        other[..., changed_level] = (other[..., changed_level] + 1) % 4
        new = model.code_logits(other, z, mask)
        for level in range(3):
            same = torch.allclose(new[level], levels[level], atol=1e-6)
            assert same == (level <= changed_level), (level, changed_level)


@torch.no_grad()
def test_decode_step_equals_decode():
    model, _ = small_model(decoder_layers=3)
    z, mask = model.encode(random_batch(model, LENGTHS))
    kv = model.context_kv(z)
    codes = torch.randint(4, (len(LENGTHS), 5, 2))
    whole = model.decode(codes, kv, mask)
    hidden, past = model.decode_step(None, 0, None, kv, mask)
    torch.testing.assert_close(hidden.expand(-1, 5, -1), whole[:, :, 0], rtol=1e-4, atol=1e-5)
    for level in (1, 2):
        hidden, past = model.decode_step(codes[..., level - 1], level, past, kv, mask)
        torch.testing.assert_close(hidden, whole[:, :, level], rtol=1e-4, atol=1e-5)


def test_item_vectors_are_sums_of_code_embeddings_and_the_unknown_item_has_its_own():
    model, tokenizer = small_model()
    vector = model.item_vector(torch.tensor([3, 20]))
    expected = sum(t.weight[c] for t, c in zip(model.code, tokenizer.sid_NL[3].tolist()))
    torch.testing.assert_close(vector[0], expected)
    torch.testing.assert_close(vector[1], sum(t.weight[4] for t in model.code))


@torch.no_grad()
def test_the_bag_is_the_sum_of_the_rows_of_all_items_over_the_root_of_their_number():
    model, _ = small_model(history_bag=True, dropout=0.5)
    batch = random_batch(model, LENGTHS)
    got = model.bag.vector(batch)
    for user, lengths in enumerate(LENGTHS):
        items = [i for name in HISTORIES for i in batch[name][user][batch[f"{name}_mask"][user]][:, 0].tolist()]
        assert len(items) == sum(lengths)
        once = set(items)
        expected = sum((model.bag.weight[i] for i in once), torch.zeros(16)) / max(1, len(once)) ** 0.5
        torch.testing.assert_close(got[user], expected)
    full = {k: v for k, v in random_batch(model, [(5, 6, 7)]).items() if not k.endswith("_mask")}
    torch.testing.assert_close(model.bag.vector(full), model.bag.vector(random_batch(model, [(5, 6, 7)])))
    z, _ = model.encode(batch)
    model.bag.weight.zero_()
    without, _ = model.encode(batch)
    torch.testing.assert_close(z[:, 0], without[:, 0] + got)
    assert torch.equal(z[:, 1:], without[:, 1:])


@torch.no_grad()
def test_items_of_the_bag_are_left_out_with_the_dropout_and_the_others_weigh_more():
    model, _ = small_model(history_bag=True, dropout=0.5)
    batch = random_batch(model, LENGTHS)
    whole = model.bag.vector(batch)
    drawn = torch.stack([model.train().bag.vector(batch) for _ in range(2000)])
    assert not torch.equal(drawn[0], whole)
    torch.testing.assert_close(drawn.mean(0), whole, atol=2e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("packs", [True, False])
def test_with_an_event_head_a_short_event_sees_itself_and_older_ones_alone(packs):
    model, _ = small_model(event_head=True, encoder_layers=2)
    batch, other = random_batch(model, [(5, 6, 7), (3, 1, 0)]), random_batch(model, [(5, 6, 7), (3, 1, 0)], seed=9)
    z, _ = model.encode(batch, packs=packs)
    for place in range(5):
        changed = {**batch, "short": batch["short"].clone()}
        changed["short"][:, place] = other["short"][:, place]
        new, _ = model.encode(changed, packs=packs)
        same = [torch.allclose(new[0, 1 + at], z[0, 1 + at], atol=1e-6) for at in range(5)]
        assert same == [at < place for at in range(5)], place
        assert not torch.allclose(new[0, 0], z[0, 0], atol=1e-4)  # which sees all
        assert not torch.allclose(new[0, 6:], z[0, 6:], atol=1e-4)
    for name in ("static", "positive", "lifelong"):
        new, _ = model.encode({**batch, name: other[name]}, packs=packs)
        torch.testing.assert_close(new[0, 1:6], z[0, 1:6], rtol=0, atol=1e-6)
        assert not torch.allclose(new[0, 0], z[0, 0], atol=1e-4), name


@torch.no_grad()
@pytest.mark.parametrize("packs", [True, False])
def test_what_the_newest_short_event_predicts_by_joins_the_first_vector(packs):
    model, _ = small_model(event_head=True)
    batch = random_batch(model, LENGTHS)
    z, mask = model.encode(batch, packs=packs)
    query = model.event_query(z[:, 5])
    model.event_query.weight.zero_(), model.event_query.bias.zero_()
    without, _ = model.encode(batch, packs=packs)
    for user, (short, *_) in enumerate(LENGTHS):
        torch.testing.assert_close(z[user, 0], without[user, 0] + (query[user] if short else 0.0))
        assert torch.equal(z[user, 1:][mask[user, 1:]], without[user, 1:][mask[user, 1:]])


@torch.no_grad()
def test_without_a_short_pathway_an_event_head_adds_nothing():
    """As a model is trained that is shown other pathways alone."""
    model, _ = small_model(event_head=True)
    batch = random_batch(model, [(0, 6, 7), (0, 1, 0)])
    assert batch["short"].shape[1] == 0
    z, mask = model.encode(batch)
    assert z.shape == (2, 1 + 6 + 2, 16) and mask.shape == (2, 9)
    padded = {**batch, "short": torch.zeros(2, 1, 7).long(), "short_mask": torch.zeros(2, 1, dtype=torch.bool)}
    torch.testing.assert_close(model.encode(padded)[0][:, 0], z[:, 0])


@torch.no_grad()
def test_event_logits_by_hand():
    model, _ = small_model(event_head=True)
    z, _ = model.encode(random_batch(model, LENGTHS))
    query, item = model.event_query, model.item_query
    joined = z[:, 1:6].double() @ query.weight.double().T + query.bias.double()
    table = (model.item_vector(torch.arange(20)) + model.item_residual.weight[:20]).double()
    expected = (joined @ item.weight.double().T + item.bias.double()) @ table.T + model.item_bias_N.double()
    torch.testing.assert_close(model.event_logits(z[:, 1:6]).double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_item_logits_by_hand():
    model, _ = small_model()
    z, _ = model.encode(random_batch(model, LENGTHS))
    query = z[:, 0].double() @ model.item_query.weight.double().T + model.item_query.bias.double()
    table = (model.item_vector(torch.arange(20)) + model.item_residual.weight[:20]).double()
    expected = query @ table.T + model.item_bias_N.double()
    torch.testing.assert_close(model.item_logits(z).double(), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    """None is dead weight. (The last item row belongs to the unknown item and is never a target.)"""
    model, _ = small_model(experts_per_token=4)
    batch, codes = random_batch(model, LENGTHS), torch.randint(4, (len(LENGTHS), 3, 3))
    z, mask = model.train().encode(batch)
    loss = model.item_logits(z).square().sum() + sum(x.square().sum() for x in model.code_logits(codes, z, mask))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_sid_table_of_another_size_is_refused():
    config = OneRecConfig(codebook_size=4, items=5, static_features=3)
    with pytest.raises(ValueError, match=r"SID table is \(4, 3\)"):
        OneRec(config, torch.zeros(4, 3, dtype=torch.int64))


def test_positions_at_the_published_sizes():
    config = OneRecConfig(
        codebook_size=8192, items=1, static_features=3, positive_len=256, lifelong_len=2000, lifelong_queries=128
    )
    assert config.positions == 405
