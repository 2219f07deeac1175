"""Attention under a mask over keys, at the shapes of a request: our kernel in several block sizes, and PyTorch's own.

    python -m benchmarks.serving.gpu_attention --out benchmarks/serving

0.935B at the published context, 64 users, beam 512: the decoder's beams over the context, the encoder over itself, the
lifelong queries over their events. bfloat16, CUDA events around 20 calls, the median of three rounds. "No mask" is what
PyTorch takes for the same shape where all keys count. Needs a CUDA device, torch and triton.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import commit, hardware
from benchmarks.serving.gpu_program import ROUNDS, milliseconds

USERS, HEADS, WIDTH, CALLS = 64, 8, 128, 20
SHAPES = {"decoder's beams": (512, 405), "encoder": (405, 405), "lifelong queries": (128, 2001)}
BLOCKS = [(64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (64, 128, 4, 2), (64, 128, 4, 3)]
BLOCKS += [(128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3)]


def column(T: int, S: int) -> dict[str, str]:
    """What each way of `T` queries over `S` keys takes."""
    from models.onerec import inference_kernels  # needs Triton, which comes with PyTorch for CUDA

    q, k, v = (torch.randn(USERS, n, HEADS, WIDTH, device="cuda").bfloat16().transpose(1, 2) for n in (T, S, S))
    mask = torch.rand(USERS, S, device="cuda") < 0.9
    bias = mask[:, None, None]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)

    def cell(run: Callable[[], Tensor]) -> str:
        took = statistics.median(milliseconds(run, CALLS) for _ in range(ROUNDS))
        return f"{took:.3f} ({4 * USERS * HEADS * T * S * WIDTH / took / 1e9:.0f})"

    found = {
        "PyTorch, mask": cell(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)),
        "PyTorch, no mask": cell(lambda: F.scaled_dot_product_attention(q, k, v)),
    }
    for queries, keys, warps, stages in BLOCKS:
        for blocks in (inference_kernels.FEW, inference_kernels.MANY):
            blocks.update(QUERIES=queries, KEYS=keys, num_warps=warps, num_stages=stages)
        off = float((inference_kernels.attend_masked(q, k, v, mask) - want).abs().max())
        took = cell(lambda: inference_kernels.attend_masked(q, k, v, mask))
        found[f"ours, {queries} x {keys}, {warps} warps, {stages} stages"] = f"{took}, {off:.4f}"
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    if not torch.cuda.is_available():
        p.error("there is no CUDA device; this benchmark measures nothing else")
    torch.manual_seed(0)
    columns = [column(T, S) for T, S in SHAPES.values()]
    lines = ["# Attention under a mask over keys", ""]
    lines += [f"{hardware('cuda')}; torch {torch.__version__}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}.", ""]
    lines += [f"`python -m benchmarks.serving.gpu_attention`, {USERS} users, {HEADS} heads of {WIDTH}, bfloat16."]
    lines += ["ms a call (TFLOP/s); of ours also the largest difference to PyTorch's result.", ""]
    lines += ["| | " + " | ".join(f"{name}, {T} x {S}" for name, (T, S) in SHAPES.items()) + " |"]
    lines += ["|---|" + "---|" * len(SHAPES)]
    lines += [f"| {name} | " + " | ".join(c[name] for c in columns) + " |" for name in columns[0]]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu_attention.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
