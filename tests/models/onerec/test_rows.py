"""Packed rows against the padded grid, and the variable-length kernel's arguments by a loop in its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.onerec import rows
from models.onerec.rows import Layout, attend
from tests.models.conftest import random_batch, small_model

LENGTHS = [(5, 6, 7), (2, 0, 3), (0, 0, 0), (1, 4, 0)]
MASK = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()


def test_pack_and_pad_are_inverse_and_padding_is_zero():
    layout, x = Layout.of(3, 4, MASK), torch.randn(3, 4, 2)
    packed = layout.pack(x)
    torch.testing.assert_close(packed, torch.cat([x[0, 1:], x[1, 3:], x[2]]), rtol=0, atol=0)
    torch.testing.assert_close(layout.pad(packed), torch.where(MASK[..., None], x, 0.0), rtol=0, atol=0)
    assert layout.starts(x.device).tolist() == [0, 3, 4, 8]


def test_a_full_grid_is_only_a_view():
    layout, x = Layout.of(3, 4, None), torch.randn(3, 4, 2)
    assert layout.pack(x).data_ptr() == x.data_ptr() and torch.equal(layout.pad(layout.pack(x)), x)
    assert layout.starts(x.device).tolist() == [0, 4, 8, 12]


def _by_user(q, k, v, starts_of, starts_to, longest_of, longest_to):
    """What the variable-length kernel computes, user by user in float64."""
    assert starts_of.dtype == starts_to.dtype == torch.int32
    assert starts_of.diff().max() <= longest_of and starts_to.diff().max() <= longest_to
    out = []
    for i in range(len(starts_of) - 1):
        one = [t[s[i] : s[i + 1]].transpose(0, 1).double() for t, s in ((q, starts_of), (k, starts_to), (v, starts_to))]
        out.append(F.scaled_dot_product_attention(*one).transpose(0, 1))
    return torch.cat(out).to(q.dtype)


def test_attention_reads_only_the_users_own_rows():
    of, to = Layout.of(3, 2, None), Layout.of(3, 4, MASK)
    q, k, v = torch.randn(6, 2, 8), torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    expected = _by_user(q, k, v, of.starts(q.device), to.starts(q.device), 2, 4)
    torch.testing.assert_close(attend(q, k, v, of, to), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("mask", [MASK, None])
def test_a_causal_range_by_a_loop(mask, packs):
    """Positions 1 and 2 see themselves and the older of the two alone, 0 and 3 see all that is valid."""
    layout = Layout.of(3, 4, mask, packs, causal=(1, 3))
    q, k, v = (torch.randn(3, 4, 2, 8) for _ in "qkv")
    got = layout.pad(attend(*(layout.pack(x) for x in (q, k, v)), layout, layout))
    assert got.isfinite().all()
    # Padding sees itself: not every attention kernel gives 0 to a row without any key.
    assert rows._allowed(layout, (1, 3), q.device).any(-1).all()
    keys_of = {0: [0, 1, 2, 3], 1: [1], 2: [1, 2], 3: [0, 1, 2, 3]}
    valid = torch.ones(3, 4, dtype=torch.bool) if mask is None else mask
    for user, place in valid.nonzero().tolist():
        keys = [at for at in keys_of[place] if valid[user, at]]
        score = torch.einsum("hd,shd->sh", q[user, place].double(), k[user, keys].double()) / 8**0.5
        expected = torch.einsum("sh,shd->hd", score.softmax(0), v[user, keys].double())
        torch.testing.assert_close(got[user, place].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packs", [True, False])
def test_padding_beside_a_causal_range_leaves_gradients_finite(packs):
    """A padded event may see nothing that is valid: it sees itself. With dropout, as in training."""
    model, _ = small_model(event_head=True, dropout=0.3, encoder_layers=2)
    z, _ = model.train().encode(random_batch(model, LENGTHS), packs=packs)
    z[:, 0].square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert z.isfinite().all() and all(g.isfinite().all() for g in gradients)
    assert model.event_query.weight.grad.any()


@torch.no_grad()
def test_a_causal_range_goes_past_the_kernels_that_take_no_such_mask(monkeypatch):
    model, _ = small_model(event_head=True)
    batch = random_batch(model, LENGTHS)
    z, mask = model.encode(batch)
    lengths = []

    def kernel(q, k, v, of, to):
        lengths.append(of.length)
        return _by_user(q, k, v, of.starts(q.device), to.starts(q.device), of.length, to.length)

    monkeypatch.setattr(rows, "varlen_runs", lambda x: True)
    monkeypatch.setattr(rows, "infers", lambda x: x.shape[2] == mask.shape[1])
    monkeypatch.setattr(rows, "_varlen", kernel)
    packed, _ = model.encode(batch)
    torch.testing.assert_close(packed, z, rtol=1e-4, atol=1e-5)
    assert lengths == [2, 2], "the QFormer's blocks alone"


@torch.no_grad()
def test_the_model_is_the_same_on_the_variable_length_kernel(monkeypatch):
    """The kernel itself runs on CUDA only; here a loop takes its arguments."""
    model, _ = small_model()
    batch = random_batch(model, LENGTHS)
    z, mask = model.encode(batch)
    calls = []

    def kernel(q, k, v, of, to):
        calls.append(len(q))
        return _by_user(q, k, v, of.starts(q.device), to.starts(q.device), of.length, to.length)

    monkeypatch.setattr(rows, "varlen_runs", lambda x: True)
    monkeypatch.setattr(rows, "_varlen", kernel)
    packed, _ = model.encode(batch)
    torch.testing.assert_close(packed, z, rtol=1e-4, atol=1e-5)
    valid = int(mask.sum())
    assert calls == [8, 8, valid], "two QFormer blocks of 2 queries a user, then the valid rows: no padding"


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"event_head": True}])
def test_a_batch_without_masks_is_one_with_full_histories(changes):
    model, _ = small_model(**changes)
    batch = random_batch(model, [(5, 6, 7)] * 3)
    bare = {name: value for name, value in batch.items() if not name.endswith("_mask")}
    (masked_z, mask), (z, nothing) = model.encode(batch), model.encode(bare)
    assert nothing is None and mask.all()
    torch.testing.assert_close(z, masked_z, rtol=1e-5, atol=1e-6)
    codes = torch.randint(4, (3, 2, 3))
    for a, b in zip(model.code_logits(codes, z, None), model.code_logits(codes, masked_z, mask)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_variable_length_kernel_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    of, to = Layout.of(3, 2, None), Layout.of(3, 4, MASK.cuda())
    q, k, v = (torch.randn(n, 2, 64, device="cuda", dtype=torch.bfloat16) for n in (6, 8, 8))
    expected = _by_user(q, k, v, of.starts(q.device), to.starts(q.device), 2, 4)
    torch.testing.assert_close(attend(q, k, v, of, to), expected, rtol=2e-2, atol=2e-2)
