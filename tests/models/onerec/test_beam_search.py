"""Beam search against scoring every item, a naive beam in Python, and the sampler's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.onerec.beam_search import beam_search, sample_codes
from models.onerec.ranking import rank_items
from tests.models.conftest import random_batch, small_model

LENGTHS = [(5, 6, 7), (2, 0, 3), (0, 0, 0)]
EVERY = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)


def _model(items: int = 20, seed: int = 0):
    model, tokenizer = small_model(items=items, seed=seed)
    with torch.no_grad():  # peaked enough that orders are clear
        model.code_bias_LK.mul_(5)
    z, mask = model.encode(random_batch(model, LENGTHS, seed))
    return model, tokenizer, z.detach(), mask


@torch.no_grad()
def _exhaustive(model, z, mask, codes: torch.Tensor) -> torch.Tensor:
    """log p of every tuple [n, 3], by levels [B, n, 3], teacher-forced."""
    levels = model.code_logits(codes.expand(len(z), -1, -1), z, mask)
    picked = [
        torch.log_softmax(x.double(), -1).gather(2, codes[None, :, i : i + 1].expand(len(z), -1, -1))
        for i, x in enumerate(levels)
    ]
    return torch.cat(picked, -1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [20, 500])
def test_a_wide_beam_ranks_the_whole_catalogue_as_exhaustive_scoring_does(seed, width):
    model, tokenizer, z, mask = _model(seed=seed)
    codes, logp = beam_search(model, z, mask, width, tokenizer.trie)
    total = _exhaustive(model, z, mask, torch.from_numpy(tokenizer.sid_NL)).sum(-1)
    expected, order = total.sort(1, descending=True)
    for user in range(len(LENGTHS)):
        real = torch.isfinite(logp[user])
        assert int(real.sum()) == 20
        assert real[:20].all(), "surplus beams stand behind"
        torch.testing.assert_close(logp[user][:20].double(), expected[user], rtol=1e-4, atol=1e-4)
        assert tokenizer.trie.lookup(codes[user][:20]).tolist() == order[user].tolist()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("free", [False, True])
def test_a_narrow_beam_keeps_the_best_prefixes_of_each_level(width, free):
    model, tokenizer, z, mask = _model()
    table = EVERY if free else torch.from_numpy(tokenizer.sid_NL)
    scored = _exhaustive(model, z, mask, table)
    codes, logp = beam_search(model, z, mask, width, None if free else tokenizer.trie)
    for user in range(len(LENGTHS)):
        kept: list[tuple[int, ...]] = [()]
        for level in range(3):
            score = {
                tuple(row[: level + 1]): float(scored[user, i, : level + 1].sum())
                for i, row in enumerate(table.tolist())
                if tuple(row[:level]) in kept
            }
            kept = sorted(score, key=score.__getitem__, reverse=True)[:width]
        real = torch.isfinite(logp[user])
        assert [tuple(c) for c in codes[user][real].tolist()] == kept
        torch.testing.assert_close(logp[user][real].tolist(), [score[c] for c in kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("items, width", [(1, 4), (3, 8), (20, 7), (40, 64)])
def test_every_finite_result_is_legal_and_stands_once(items, width):
    model, tokenizer, z, mask = _model(items)
    codes, logp = beam_search(model, z, mask, width, tokenizer.trie)
    assert codes.shape == (*logp.shape, 3) and logp.shape[1] <= width
    for user in range(len(LENGTHS)):
        item = tokenizer.trie.lookup(codes[user][torch.isfinite(logp[user])]).tolist()
        assert -1 not in item and len(set(item)) == len(item)
        assert logp[user].tolist() == sorted(logp[user].tolist(), reverse=True)


def test_a_free_search_over_everything_sums_to_one():
    model, _, z, mask = _model()
    codes, logp = beam_search(model, z, mask, 64, None)
    assert len({tuple(c) for c in codes[0].tolist()}) == 64
    torch.testing.assert_close(logp.exp().sum(1), torch.ones(len(LENGTHS)), rtol=1e-4, atol=1e-4)


def test_users_do_not_influence_each_other():
    model, tokenizer, z, mask = _model()
    codes, logp = beam_search(model, z, mask, 6, tokenizer.trie)
    for user in range(len(LENGTHS)):
        own_codes, own_logp = beam_search(model, z[user : user + 1], mask[user : user + 1], 6, tokenizer.trie)
        torch.testing.assert_close(own_logp[0], logp[user], rtol=1e-4, atol=1e-4)
        assert torch.equal(own_codes[0], codes[user])


@torch.no_grad()
def test_rank_items_orders_the_catalogue_by_both_scores():
    model, tokenizer, z, mask = _model()
    batch = random_batch(model, LENGTHS)
    item, score, codes = rank_items(model, batch, tokenizer.trie, width=300)
    beam = _exhaustive(model, z, mask, torch.from_numpy(tokenizer.sid_NL)).sum(-1)
    expected, order = (beam + torch.log_softmax(model.item_logits(z).double(), -1)).sort(1, descending=True)
    beam_only = beam.argsort(1, descending=True)
    assert not torch.equal(order, beam_only), "the item score decides nothing here: the test would prove nothing"
    real = torch.isfinite(score)
    assert (real.sum(1) == 20).all()
    torch.testing.assert_close(score[real].view(3, 20).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(item[real].view(3, 20), order)
    assert np.array_equal(codes[real].view(3, 20, 3).numpy(), tokenizer.sid_NL[order.numpy()])


def test_samples_follow_the_policy():
    model, _, z, mask = _model()
    count = 5_000
    p = _exhaustive(model, z, mask, EVERY).sum(-1).exp()
    codes = sample_codes(model, z, mask, count, torch.Generator().manual_seed(0))
    assert codes.shape == (len(LENGTHS), count, 3)
    for user in range(len(LENGTHS)):
        key = codes[user] @ torch.tensor([16, 4, 1])
        share = torch.bincount(key, minlength=64).double() / count
        error = (share - p[user]).abs() / (p[user] * (1 - p[user]) / count).sqrt()
        assert error.max() < 4.5  # standard errors; 192 tuples are compared
    again = sample_codes(model, z, mask, 50, torch.Generator().manual_seed(1))
    assert torch.equal(again, sample_codes(model, z, mask, 50, torch.Generator().manual_seed(1)))
    assert not torch.equal(again, sample_codes(model, z, mask, 50, torch.Generator().manual_seed(2)))
