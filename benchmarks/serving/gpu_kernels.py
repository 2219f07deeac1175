"""The Triton kernels of serving beside what PyTorch does: time and largest difference, at the published shapes.

    python -m benchmarks.serving.gpu_kernels --out benchmarks/serving
    TRITON_INTERPRET=1 python -m benchmarks.serving.gpu_kernels --out /tmp/x --device cpu --users 1 --beam 8

0.935B, bfloat16, random numbers: experts of one layer for all beams, attention of the three places that have a mask.
"Plain" is the module as it runs elsewhere, compiled; differences are against the same in float32.
"""

from __future__ import annotations

import argparse
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

SHAPES = ((128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 32, 8, 4), (256, 64, 64, 8, 3), (128, 64, 64, 4, 4))
DOWN_SHAPES = ((128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (256, 128, 64, 8, 3))
ATTENTION_SHAPES = ((128, 64, 8, 3), (128, 128, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3))


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
            "# Triton kernels of serving",
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
    c = onerec_0_935b(items=10, static_features=1)
    torch.manual_seed(0)
    with torch.device(device):
        moe = MoE(c.d_model, c.experts, c.experts_per_token, c.expert_dim, 0.0).eval().bfloat16()
        x_ND = torch.randn(users * beam, c.d_model, dtype=torch.bfloat16)
    moe.bias_E = torch.zeros(c.experts, device=device)
    N, k = len(x_ND), c.experts_per_token
    flops = 6.0 * N * k * c.d_model * c.expert_dim
    wanted = None
    if N <= 1 << 17:
        rows.FUSED[0] = False
        wide = MoE(c.d_model, c.experts, k, c.expert_dim, 0.0).eval().to(device)
        wide.load_state_dict({n: t.float() for n, t in moe.state_dict().items()})
        wanted = wide(x_ND.float()).float()  # its products are bfloat16 on CUDA too, its sums float32
        del wide
    rows.FUSED[0] = False
    plain = torch.compile(moe) if device == "cuda" else moe
    table.row("experts, plain", lambda: plain(x_ND), flops, wanted)
    rows.FUSED[0] = True
    torch._dynamo.reset()
    fused = torch.compile(moe) if device == "cuda" else moe
    table.row("experts, kernels", lambda: fused(x_ND), flops, wanted)
    args = (x_ND, moe.router.weight, moe.bias_E, k)
    same = float((kernels.route(*args)[1].long() == moe.route(x_ND)[1]).float().mean())
    table.row("routing, plain", lambda: moe.route(x_ND)[0], 0)
    table.row(f"routing, kernel ({same:.4%} chosen alike)", lambda: kernels.route(*args)[0], 0)
    gate_NK, chosen_NK = kernels.route(*args)
    table.row("sort of 64-bit experts", lambda: chosen_NK.long().flatten().sort(stable=True)[1], 0)
    table.row("sort of 8-bit experts", lambda: chosen_NK.flatten().sort(stable=True)[1], 0)
    expert_R, order_R = chosen_NK.flatten().sort(stable=True)
    every = torch.arange(c.experts, device=device, dtype=torch.uint8)
    ends = torch.searchsorted(expert_R, every, right=True, out_int32=True)
    hidden = kernels.swiglu(x_ND, order_R, ends, moe.gate_EDF, moe.up_EDF, k)
    for shape in SHAPES:
        kernels.ROWS, kernels.SWIGLU_COLS, kernels.DEPTH, kernels.WARPS, kernels.STAGES = shape
        table.row(
            f"gate, up and SwiGLU, tile {shape}",
            lambda: kernels.swiglu(x_ND, order_R, ends, moe.gate_EDF, moe.up_EDF, k),
            flops * 2 / 3,
        )
    for shape in DOWN_SHAPES:
        kernels.ROWS, kernels.DOWN_COLS, kernels.DEPTH, kernels.WARPS, kernels.STAGES = shape
        table.row(
            f"down, tile {shape}",
            lambda: kernels.down(hidden, order_R, ends, gate_NK.flatten(), moe.down_EFD),
            flops / 3,
        )
    if device == "cuda":
        sorted_x = x_ND[order_R // k]
        grouped = torch.nn.functional.grouped_mm
        table.row("gate alone, grouped_mm", lambda: grouped(sorted_x, moe.gate_EDF, offs=ends), flops / 3)
        table.row("down alone, grouped_mm", lambda: grouped(hidden, moe.down_EFD, offs=ends), flops / 3)
        square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        table.row("a square product of 8192", lambda: square @ square, 2.0 * 8192**3)


def attention(table: Table, users: int, beam: int, device: str) -> None:
    c = onerec_0_935b(items=10, static_features=1)
    places = {"decoder": (beam, 405), "encoder": (405, 405), "QFormer": (c.lifelong_queries, c.lifelong_len + 1)}
    for place, (queries, keys) in places.items():
        attention_at(table, place, (users, c.heads, queries, keys, c.d_model // c.heads), device)


def attention_at(table: Table, place: str, shape: tuple[int, int, int, int, int], device: str) -> None:
    users, H, T, S, d = shape
    q, k, v = (torch.randn(users, n, H, d, device=device, dtype=torch.bfloat16).transpose(1, 2) for n in (T, S, S))
    mask = torch.rand(users, S, device=device) < 0.9
    mask[:, -1] = True
    flops, sdpa = 4.0 * users * H * T * S * d, torch.nn.functional.scaled_dot_product_attention
    wanted = None
    if users * H * T * S < 1 << 30:
        wanted = sdpa(q.float(), k.float(), v.float(), attn_mask=mask[:, None, None])
    table.row(f"{place}, scaled_dot_product_attention", lambda: sdpa(q, k, v, mask[:, None, None]), flops, wanted)
    if device == "cuda":

        def cudnn() -> Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return sdpa(q, k, v, mask[:, None, None])

        table.row(f"{place}, the same by cuDNN", cudnn, flops, wanted)
        table.row(f"{place}, without the mask", lambda: sdpa(q, k, v), flops)
    for block in ATTENTION_SHAPES:
        kernels.QUERIES, kernels.KEYS, kernels.ATTENTION_WARPS, kernels.ATTENTION_STAGES = block
        table.row(f"{place}, kernel, block {block}", lambda: kernels.attention(q, k, v, mask), flops, wanted)


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
