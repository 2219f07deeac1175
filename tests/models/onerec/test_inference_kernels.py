"""A request's kernels against plain PyTorch: on CUDA as they are, elsewhere in Triton's interpreter; else skipped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")

from models.onerec import grouped_kernel, inference_kernels, layers, moe, rows
from models.onerec.beam_search import beam_search
from models.onerec.kernels import Kernels, use_kernels
from models.onerec.model import OneRec
from models.onerec.program import ServingProgram, input_shapes
from models.onerec.sizes import lazy, onerec_tiny
from models.tokenizer.trie import Trie
from serving.export.compiling import compile_package
from serving.export.loading import load_package
from tests.models.conftest import random_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEAR = {"rtol": 1e-4, "atol": 1e-5}
HALF = {"rtol": 2e-2, "atol": 2e-2} if DEVICE == "cuda" else NEAR  # what is in bfloat16 there


@pytest.mark.parametrize(("queries", "keys", "width"), [(5, 3, 16), (130, 70, 32), (129, 200, 128)])
def test_attention_under_a_mask_reads_the_keys_that_are_seen_and_no_other(queries, keys, width):
    torch.manual_seed(0)
    B, H = 3, 2
    # As the model gives them: heads taken out of the last dimension, so that rows of a head lie apart.
    q, k, v = (torch.randn(B, n, H, width, device=DEVICE).transpose(1, 2) for n in (queries, keys, keys))
    mask = torch.rand(B, keys, device=DEVICE) < 0.6
    mask[0], mask[1] = False, True
    mask[0, keys - 1] = True  # all blocks before the last hold nothing that is seen
    v.transpose(1, 2)[~mask] = 1e4  # what is not seen must not show
    found = inference_kernels.attend_masked(q, k, v, mask)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask[:, None, None])
    torch.testing.assert_close(found, expected.transpose(1, 2).float(), **NEAR)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_a_handful_of_pairs_some_of_which_all_beams_share(pairs):
    torch.manual_seed(0)
    B, M, H, d = 2, 21, 2, 16
    q = torch.randn(B, M, H, d, device=DEVICE)
    kv = [tuple(torch.randn(B, 1 if p == 0 else M, H, d, device=DEVICE) for _ in range(2)) for p in range(pairs)]
    found = inference_kernels.attend_few(q, [k for k, _ in kv], [v for _, v in kv])
    k, v = (torch.stack([pair[i].expand(B, M, H, d) for pair in kv], 3) for i in range(2))
    expected = F.scaled_dot_product_attention(q[:, :, :, None].double(), k.double(), v.double())[:, :, :, 0]
    torch.testing.assert_close(found, expected.float(), **NEAR)


def test_log_sum_exp_of_rows_with_anything_in_them():
    torch.manual_seed(0)
    x = torch.randn(3, 64, device=DEVICE) * 30
    x[0, :63] = float("-inf")
    torch.testing.assert_close(inference_kernels.row_log_sum_exp(x), torch.logsumexp(x, 1))


@pytest.mark.parametrize("loads", [[3, 0, 70, 64], [0, 0, 0, 5], [65, 1, 0, 0, 2], [0, 0]])
def test_each_run_of_rows_meets_its_experts_matrix(loads):
    torch.manual_seed(0)
    D, F_ = 40, 72  # no multiple of a tile
    x, w = torch.randn(sum(loads), D, device=DEVICE), torch.randn(len(loads), D, F_, device=DEVICE)
    ends = torch.tensor(loads, device=DEVICE).cumsum(0).int()
    found = grouped_kernel.grouped_product(x, w, ends)
    expected = torch.cat([rows @ matrix for rows, matrix in zip(x.double().split(loads), w.double())])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [lambda c: c, lazy])
def test_a_search_finds_the_same_with_and_without(form, monkeypatch):
    """In float32: the same beams, their scores equal to rounding."""
    torch.manual_seed(0)
    config = form(onerec_tiny(codebook_size=8, items=60, static_features=3))
    sid = torch.stack([torch.arange(60) // 16, torch.arange(60) // 4 % 4, torch.arange(60) % 4], 1)
    model = OneRec(config, sid).to(DEVICE).eval()
    trie = Trie.build(sid.numpy(), 8).to(DEVICE)
    lengths = [(20, 9, 32), (3, 0, 0), (1, 5, 7), (0, 0, 0)]
    batch = {name: t.to(DEVICE) for name, t in random_batch(model, lengths, seed=1).items()}
    called = []

    def infers(x: torch.Tensor) -> bool:
        called.append(x.shape)
        return not torch.is_grad_enabled()

    for module in (layers, rows):
        monkeypatch.setattr(module, "infers", infers)
    found = []
    for inference in (True, False):
        use_kernels(model, Kernels(inference=inference))
        with torch.no_grad():
            z, mask = model.encode(batch, packs=False)
            found.append(beam_search(model, z, mask, 12, trie))
        assert bool(called) is inference
        called.clear()
    assert (found[0][0] == found[1][0]).float().mean() > 0.999
    torch.testing.assert_close(found[0][1], found[1][1], **NEAR)


def test_a_compiled_package_calls_them(tmp_path, monkeypatch):
    """On a CPU as operators of the interpreter; a package for CUDA reaches them the same way, by their names."""
    torch.manual_seed(0)
    config = onerec_tiny(codebook_size=8, items=60, static_features=3)
    sid = torch.stack([torch.arange(60) // 16, torch.arange(60) // 4 % 4, torch.arange(60) % 4], 1)
    model, trie = OneRec(config, sid).to(DEVICE), Trie.build(sid.numpy(), 8).to(DEVICE)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    program = ServingProgram(model, trie, torch.arange(60, device=DEVICE), 8, dtype)
    shapes = {name: shape for name, shape in input_shapes(config).items() if name != "beam"}
    users = {name: torch.randint(3, (3, *shape), dtype=torch.int32, device=DEVICE) for name, shape in shapes.items()}
    for module in (layers, rows):
        monkeypatch.setattr(module, "infers", lambda x: not torch.is_grad_enabled())
    if DEVICE == "cpu":
        monkeypatch.setattr(moe, "_grouped", grouped_kernel.grouped_product)
    compile_package(program, users, tmp_path / "program.pt2", max_batch=4)
    inputs = [*users.values(), torch.full((3,), 8, dtype=torch.int32, device=DEVICE)]
    with torch.no_grad():
        expected, found = program(*inputs), load_package(tmp_path / "program.pt2")(*inputs)
    assert (found[0] == expected[0]).float().mean() > (0.98 if DEVICE == "cuda" else 0.999)
    torch.testing.assert_close(found[1], expected[1], **HALF)
