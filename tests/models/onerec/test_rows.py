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
def test_a_batch_without_masks_is_one_with_full_histories():
    model, _ = small_model()
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
