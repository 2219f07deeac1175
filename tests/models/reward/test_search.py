"""The search units against loops in float64: which events are chosen, and the attention over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.onerec.features import LABELS
from models.reward.pscore import PScoreConfig
from models.reward.search import GAP, ExactSearch, SoftSearch, hard_search, long_history, top_relevant
from tests.models.reward.conftest import batch_of, pscore

B, M, S, K = 3, 5, 12, 3


def _history(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Categories of candidates and events, and a mask; the last user has no event."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, S, generator=g) < 0.8
    mask[-1] = False
    return torch.randint(0, 3, (B, M), generator=g), torch.randint(0, 3, (B, S), generator=g), mask


@pytest.mark.parametrize("k", [1, K, S, 100])
def test_hard_search_takes_exactly_the_newest_k_of_the_candidates_category(k):
    candidate, event, mask = _history()
    chosen = hard_search(candidate, event, mask, k)
    for b in range(B):
        for m in range(M):
            same = [s for s in range(S) if mask[b, s] and candidate[b, m] > 0 and event[b, s] == candidate[b, m]]
            assert chosen[b, m].nonzero()[:, 0].tolist() == same[:k]


@pytest.mark.parametrize("k", [1, K, S, 100])
def test_soft_search_is_the_brute_force_top_k(k):
    _, _, mask = _history()
    torch.manual_seed(1)
    unit = SoftSearch(6, 4).double()
    item, event = torch.randn(B, M, 6).double(), torch.randn(B, S, 6).double()
    relevance, click = unit(item, event, mask)
    chosen = top_relevant(relevance, mask, k)
    assert click.shape == (B, M) and torch.isfinite(click).all()
    wa, wb = unit.of_candidate.weight.detach().numpy(), unit.of_event.weight.detach().numpy()
    for b in range(B):
        for m in range(M):
            r = {s: float((wb @ event[b, s].numpy()) @ (wa @ item[b, m].numpy())) for s in range(S) if mask[b, s]}
            best = sorted(sorted(r, key=lambda s: -r[s])[:k])
            assert chosen[b, m].nonzero()[:, 0].tolist() == best
            for s in r:
                assert relevance[b, m, s].item() == pytest.approx(r[s] / 4**0.5)


def test_the_auxiliary_task_trains_the_projections_the_choice_alone_cannot():
    _, _, mask = _history()
    unit = SoftSearch(6, 4)
    relevance, click = unit(torch.randn(B, M, 6), torch.randn(B, S, 6), mask)
    assert not top_relevant(relevance, mask, K).dtype.is_floating_point  # a choice has no gradient
    click.sum().backward()
    assert unit.of_candidate.weight.grad.any() and unit.of_event.weight.grad.any()


def test_exact_search_equals_naive_attention_and_is_zero_without_events():
    candidate, event, mask = _history()
    chosen = hard_search(candidate, event, mask, K)
    torch.manual_seed(2)
    heads, dim = 2, 3
    unit = ExactSearch(6, 5, heads, dim).double()
    item, z = torch.randn(B, M, 6).double(), torch.randn(B, S, 5).double()
    out = unit(item, z, chosen).detach().numpy()
    wq, bq, wk, bk = (t.detach().numpy() for t in (unit.query.weight, unit.query.bias, unit.key.weight, unit.key.bias))
    for b in range(B):
        for m in range(M):
            for h in range(heads):
                rows = slice(h * dim, (h + 1) * dim)
                q = wq[rows] @ item[b, m].numpy() + bq[rows]
                at = chosen[b, m].nonzero()[:, 0].tolist()
                e = np.array([np.exp(q @ (wk[rows] @ z[b, s].numpy() + bk[rows]) / dim**0.5) for s in at])
                expected = sum((w / e.sum() * z[b, s].numpy() for w, s in zip(e, at)), np.zeros(5))
                np.testing.assert_allclose(out[b, m, h * 5 : (h + 1) * 5], expected, atol=1e-12)
    empty = ~chosen.any(-1).numpy()
    assert empty.any() and not out[empty].any()


def test_an_empty_choice_has_no_gradient_and_no_nan():
    unit = ExactSearch(6, 5, 2, 3)
    item, z = torch.randn(1, 2, 6, requires_grad=True), torch.randn(1, 4, 5, requires_grad=True)
    unit(item, z, torch.zeros(1, 2, 4, dtype=torch.bool)).sum().backward()
    assert not item.grad.any() and not z.grad.any()
    assert all(torch.isfinite(p.grad).all() for p in unit.parameters())


def test_the_long_history_is_newest_first_with_clockless_events_last():
    def events(gaps: list[int], first_id: int) -> torch.Tensor:
        e = torch.zeros(1, len(gaps), 7, dtype=torch.long)
        e[0, :, 0], e[0, :, GAP] = first_id + torch.arange(len(gaps)), torch.tensor(gaps)
        return e

    batch = {
        "positive": events([0, 9, 4, 2], 10),  # oldest first; the first one stands in the padding
        "positive_mask": torch.tensor([[False, True, True, True]]),
        "lifelong": events([0, 0, 12, 3, 3], 20),
        "lifelong_mask": torch.ones(1, 5, dtype=torch.bool),
    }
    history = long_history(batch)
    # Ages 2, 3, 3, 4, 9, 12, then the two without a clock, newest of their own order first, then padding.
    assert history.events[0, :-1, 0].tolist() == [13, 24, 23, 12, 11, 22, 21, 20]
    assert history.mask[0].tolist() == [True] * 8 + [False]


@torch.no_grad()
def test_a_candidate_reads_events_of_its_own_category_only():
    model, _ = pscore(search_k=2)
    batch = batch_of(((0, 4, 3),))
    model.item_category_N[:-1] = 1 + torch.arange(20) % 3
    batch["positive"][..., 0] = torch.tensor([[0, 1, 3, 4]])  # categories 1 2 1 2
    batch["lifelong"][..., 0] = torch.tensor([[2, 5, 8]])  # category 3
    candidate = torch.tensor([[6, 7]])  # categories 1 and 2
    before = model(batch, candidate)[1]
    other = {**batch, "lifelong": batch["lifelong"].clone()}
    other["lifelong"][..., 6] = 255 - batch["lifelong"][..., 6]
    torch.testing.assert_close(model(other, candidate)[1], before, rtol=0, atol=0)
    other = {**batch, "positive": batch["positive"].clone()}
    other["positive"][0, [0, 2], 6] = 255 - batch["positive"][0, [0, 2], 6]  # the events of category 1
    changed = model(other, candidate)[1] != before
    assert changed.tolist() == [[True, False]]


@torch.no_grad()
@pytest.mark.parametrize("search", ["hard", "soft"])
def test_time_gaps_reach_the_score(search):
    model, _ = pscore(search=search)
    model.item_category_N[:-1] = 1
    batch = batch_of(((0, 4, 3),))
    other = {**batch, "positive": batch["positive"].clone()}
    other["positive"][..., GAP] = 30 - batch["positive"][..., GAP]
    candidate = torch.tensor([[6, 7]])
    assert (model(other, candidate)[1] != model(batch, candidate)[1]).all()


def test_soft_search_trains_by_its_own_task_and_hard_search_has_none():
    hard, _ = pscore()
    assert hard.outputs(batch_of(), torch.tensor([[1, 2]] * 3)).search is None
    soft, _ = pscore(search="soft", search_k=2)
    out = soft.outputs(batch_of(), torch.tensor([[1, 2]] * 3))
    (out.towers.sum() + out.score.sum()).backward(retain_graph=True)
    assert soft.soft.of_event.weight.grad is None
    out.search.sum().backward()
    assert soft.soft.of_event.weight.grad.any()
    assert out.towers.shape == (3, 2, len(LABELS))


@pytest.mark.parametrize("change, word", [({"search": "fuzzy"}, "hard, soft"), ({"search_k": 0}, "search_k")])
def test_choices_that_do_not_exist_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        PScoreConfig(codebook_size=4, items=20, static_features=3, **change)
