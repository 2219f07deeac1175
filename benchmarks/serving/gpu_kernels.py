"""What serving does otherwise than training on CUDA, beside the plain way: time and largest difference.

    python -m benchmarks.serving.gpu_kernels --out benchmarks/serving
    TRITON_INTERPRET=1 python -m benchmarks.serving.gpu_kernels --out /tmp/x --device cpu --users 1 --beam 8

0.935B, bfloat16, random numbers: experts of one layer for all beams, attention of the three places that leave keys out.
"Plain" is the module as it runs elsewhere, compiled; differences are against the same in float32.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.machine import commit, hardware
from models.onerec import kernels, rows
from models.onerec.moe import MoE
from models.onerec.sizes import onerec_0_935b


def milliseconds(run: Callable[[], object], device: str, repeats: int = 20) -> float:
    if device == "cpu":
        run()
        return float("nan")
    for _ in range(3):
        run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


class Table:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.file = args, args.out / "gpu_kernels.md"
        args.out.mkdir(parents=True, exist_ok=True)
        self.lines = [
            "# Kernels of serving",
            "",
            f"{hardware(args.device)}; torch {torch.__version__}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}.",
            f"`python -m benchmarks.serving.gpu_kernels`, {args.users} users, beam {args.beam}.",
            "",
            "| what | ms | TFLOP/s | largest difference to float32 | to their scale |",
            "|---|---|---|---|---|",
        ]

    def row(self, name: str, run: Callable[[], Tensor], flops: float, wanted: Tensor | None = None) -> None:
        try:
            found, ms = run(), milliseconds(run, self.args.device)
        except Exception as error:  # a shape may need more shared memory than there is
            self.lines.append(f"| {name} | {type(error).__name__}: {str(error)[:60]!r} | | | |")
        else:
            gap = "" if wanted is None else f"{(found.float() - wanted).abs().max():.2e} | {wanted.std():.2e}"
            self.lines.append(f"| {name} | {ms:.3f} | {flops / ms / 1e9:.0f} | {gap or ' | '} |")
        print(self.lines[-1], flush=True)
        self.file.write_text("\n".join(self.lines) + "\n")


def experts(table: Table, users: int, beam: int, device: str) -> None:
    """One layer's experts for all beams, and its routing alone."""
    c = onerec_0_935b(items=10, static_features=1)
    torch.manual_seed(0)
    with torch.device(device):
        moe = MoE(c.d_model, c.experts, c.experts_per_token, c.expert_dim, 0.0).eval().bfloat16()
        x_ND = torch.randn(users * beam, c.d_model, dtype=torch.bfloat16)
        wide = MoE(c.d_model, c.experts, c.experts_per_token, c.expert_dim, 0.0).eval()
    moe.bias_E = torch.zeros(c.experts, device=device)
    flops = 6.0 * len(x_ND) * c.experts_per_token * c.d_model * c.expert_dim
    wide.load_state_dict({n: t.float() for n, t in moe.state_dict().items()})
    wanted = wide(x_ND.float()).float()  # its products are bfloat16 on CUDA too, its sums float32
    for name, fused in (("plain", False), ("router's kernel, experts sorted as 8 bits", True)):
        rows.FUSED[0] = fused
        torch._dynamo.reset()
        run = torch.compile(moe) if device == "cuda" else moe
        table.row(f"experts, {name}", lambda run=run: run(x_ND), flops, wanted)
    rows.FUSED[0] = False
    gate_NK, chosen_NK = moe.route(x_ND)
    args = (x_ND, moe.router.weight, moe.bias_E, c.experts_per_token)
    same = float((kernels.route(*args)[1].long() == chosen_NK).float().mean())
    routed = torch.compile(lambda x: moe.route(x)[0]) if device == "cuda" else lambda x: moe.route(x)[0]
    table.row("routing, plain", lambda: routed(x_ND), 0, gate_NK)
    table.row(f"routing, kernel ({same:.4%} chosen alike)", lambda: kernels.route(*args)[0], 0, gate_NK)
    table.row("sort of 64-bit experts", lambda: chosen_NK.flatten().sort(stable=True)[1], 0)
    chosen_NK = chosen_NK.to(torch.uint8)
    table.row("sort of 8-bit experts", lambda: chosen_NK.flatten().sort(stable=True)[1], 0)
    rows.FUSED[0] = True


def attention(table: Table, users: int, beam: int, device: str) -> None:
    c = onerec_0_935b(items=10, static_features=1)
    places = {"decoder": (beam, 405), "encoder": (405, 405), "QFormer": (c.lifelong_queries, c.lifelong_len + 1)}
    for place, (queries, keys) in places.items():
        attention_at(table, place, (users, c.heads, queries, keys, c.d_model // c.heads), device)


def attention_at(table: Table, place: str, shape: tuple[int, int, int, int, int], device: str) -> None:
    """All queries of a user see its first keys: by a mask, and by their number."""
    users, H, T, S, d = shape
    q, k, v = (torch.randn(users, n, H, d, device=device, dtype=torch.bfloat16).transpose(1, 2) for n in (T, S, S))
    valid_B = torch.randint(S - S // 4, S + 1, (users,), device=device, dtype=torch.int32)
    mask = torch.arange(S, device=device) < valid_B[:, None]
    flops = 4.0 * users * H * T * S * d
    wanted = rows.masked_attention(q.float(), k.float(), v.float(), mask)
    for name, backend in (("as PyTorch chooses", None), ("by cuDNN", SDPBackend.CUDNN_ATTENTION)):
        with sdpa_kernel(backend) if backend and device == "cuda" else contextlib.nullcontext():
            table.row(f"{place}, mask, {name}", lambda: rows.masked_attention(q, k, v, mask), flops, wanted)
    table.row(f"{place}, number of keys", lambda: rows.masked_attention(q, k, v, valid_B), flops, wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--beam", type=int, default=512)
    args = parser.parse_args()
    table = Table(args)
    with torch.no_grad():
        experts(table, args.users, args.beam, args.device)
        attention(table, args.users, args.beam, args.device)


if __name__ == "__main__":
    main()
