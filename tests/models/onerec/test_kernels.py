"""Triton kernels against plain PyTorch: on CUDA as they are, elsewhere in Triton's interpreter; else skipped."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")

from models.onerec import attention_kernels, event_kernels, layers, pathways
from models.onerec.kernels import Kernels, use_kernels
from models.onerec.model import OneRec
from models.onerec.sizes import onerec_tiny
from models.training.adamw_kernel import adamw
from models.training.losses import ntp_loss
from models.training.working_copies import update
from tests.models.conftest import random_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _by_user(q, kv, slot, lengths):
    """Attention user by user."""
    out, first = [], 0
    for b, n in enumerate(lengths):
        rows = kv[first : first + n]
        rows = rows if slot is None else torch.cat([slot[None], rows[1:]])
        heads = [t.transpose(0, 1) for t in (q[b], rows[:, 0], rows[:, 1])]
        out.append(F.scaled_dot_product_attention(*heads).transpose(0, 1))
        first += n
    return torch.stack(out)


@pytest.mark.parametrize("slot", [False, True])
@pytest.mark.parametrize(("queries", "heads", "width", "lengths"), [(3, 2, 16, (5, 1, 70)), (40, 1, 32, (65, 200))])
def test_few_queries_read_their_users_rows_and_the_slot(queries, heads, width, lengths, slot):
    torch.manual_seed(0)
    q = torch.randn(len(lengths), queries, heads, width, device=DEVICE, requires_grad=True)
    kv = torch.randn(sum(lengths), 2, heads, width, device=DEVICE, requires_grad=True)
    learned = torch.randn(2, heads, width, device=DEVICE, requires_grad=True) if slot else None
    starts = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(DEVICE)
    ours, expected = attention_kernels.read(q, kv, learned, starts), _by_user(q, kv, learned, lengths)
    seed, inputs = torch.randn_like(expected), [t for t in (q, kv, learned) if t is not None]
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if DEVICE == "cuda" else {"rtol": 1e-4, "atol": 1e-5}  # TF32 there
    torch.testing.assert_close(ours, expected, **tolerance)
    for got, want in zip(
        torch.autograd.grad((ours * seed).sum(), inputs), torch.autograd.grad((expected * seed).sum(), inputs)
    ):
        torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("events", [1, 300, 1000])
def test_lookups_side_by_side_and_the_gradient_of_every_table(events):
    """1000 lookups of 3 rows make several pieces a row; a row that is not looked up gets zeros."""
    torch.manual_seed(0)
    rows, widths, columns = [50, 50, 50, 9, 3], [64, 64, 64, 32, 16], [0, 0, 0, 64, 96]
    tables = [torch.randn(r, w, device=DEVICE, requires_grad=True) for r, w in zip(rows, widths)]
    index = torch.stack([torch.randint(r, (events,), device=DEVICE) for r in rows], 1)
    one = [F.embedding(index[:, i], table) for i, table in enumerate(tables)]
    expected = torch.cat([one[0] + one[1] + one[2], *one[3:]], 1)
    ours, seed = event_kernels.lookups(index, tables, columns), torch.randn_like(expected)
    torch.testing.assert_close(ours, expected)
    got = torch.autograd.grad((ours * seed).sum(), tables)
    for g, want in zip(got, torch.autograd.grad((expected * seed).sum(), tables)):
        torch.testing.assert_close(g, want, rtol=1e-5, atol=1e-5)
    again = event_kernels.lookups_backward(seed, index, rows, widths, columns)
    assert all(torch.equal(g, a) for g, a in zip(got, again))


def test_no_events_have_no_gradient():
    index = torch.zeros(0, 1, dtype=torch.int64, device=DEVICE)
    (total,) = event_kernels.lookups_backward(torch.zeros(0, 16, device=DEVICE), index, [4], [16], [0])
    assert total.shape == (4, 16) and not total.any()


@pytest.mark.skipif(DEVICE == "cuda", reason="on CUDA the kernels take bfloat16 only")
@pytest.mark.parametrize("lengths", [[(5, 9, 40), (5, 9, 40)], [(5, 9, 40), (2, 0, 3), (0, 0, 0)]])
def test_the_model_is_the_same_with_and_without_them(monkeypatch, lengths):
    """Loss and every gradient, on packed rows of any length."""
    config = dataclasses.replace(
        onerec_tiny(codebook_size=32, items=100, static_features=3),
        **{"d_model": 64, "item_head": False, "author_dim": 32, "short_len": 5, "positive_len": 9, "lifelong_len": 40},
    )
    torch.manual_seed(0)
    model = OneRec(config, torch.randint(32, (100, 3))).train()
    with torch.no_grad():
        model.pathways.no_life_D.normal_()
    use_kernels(model, Kernels(few_queries=True))
    batch = random_batch(model, lengths)
    targets = torch.randint(100, (len(lengths), 2))
    results, calls = [], []
    for on in (False, True):

        def reads(y, width, queries, on=on):
            calls.append(on)
            return on and queries <= 128

        monkeypatch.setattr(layers, "reads_few", reads)
        monkeypatch.setattr(pathways, "event_kernels_run", lambda tables, on=on: on)
        z, mask = model.encode(batch)
        loss = ntp_loss(model, targets, torch.ones(targets.shape), z, mask)[0]
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    assert {*calls} == {False, True}
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for want, got in zip(results[0][1], results[1][1]):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [5, 5000])
def test_the_kernel_of_adamw_is_adamw(size):
    torch.manual_seed(0)
    ours = [torch.rand(size, device=DEVICE) for _ in range(5)]
    theirs = [t.cpu().clone() for t in ours]
    rate, beta1, beta2, eps, decay, step = 1e-2, 0.9, 0.95, 1e-8, 0.05, 3
    bias1, bias2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    adamw(*ours, torch.tensor(0.5, device=DEVICE), rate, beta1, beta2, eps, decay, bias1, bias2)
    group = {"lr": rate, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    update(*theirs, torch.tensor(0.5), group, step)
    for got, want in zip(ours, theirs):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-6)
