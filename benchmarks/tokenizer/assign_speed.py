"""Assignment and fit on one GPU: vectors a second beside the machine's bf16 matrix rate, agreement with float32, a fit.

    python -m benchmarks.tokenizer.assign_speed --out benchmarks/tokenizer/assign_speed.md

Needs torch and numpy only. `--small` shrinks every size, so that the script itself can be tried on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import commit
from models.tokenizer import rq_kmeans
from models.tokenizer.assign import assign, decide, squared_norms
from models.tokenizer.vectors import chunk_rows

ROUNDS = 3
LEVELS = 3


class Made:
    """Vectors made on the device in chunks from a seed and kept in bfloat16: topics, sub-topics and noise."""

    def __init__(self, rows: int, dim: int, device: torch.device, topics: int = 4096) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.dim, self.device, self.step = dim, device, chunk_rows(dim, device)
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        coarse, fine = (torch.randn(topics, dim, generator=generator, device=device) * s for s in (1.0, 0.6))
        self.x_ND = torch.empty(rows, dim, dtype=kind, device=device)
        for x in self.x_ND.split(self.step):
            a, b = (torch.randint(topics, (len(x),), generator=generator, device=device) for _ in range(2))
            noise = torch.randn(len(x), dim, generator=generator, device=device)
            x.copy_(coarse[a] + fine[b] + 0.4 * noise)

    def __len__(self) -> int:
        return len(self.x_ND)

    def chunks(self) -> Iterator[Tensor]:
        yield from self.x_ND.split(self.step)

    def rows(self, index: Tensor) -> Tensor:
        return self.x_ND[index.to(self.device)]


def seconds(work: Callable[[], object], device: torch.device, least: float = 0.5) -> float:
    """Best of ROUNDS means; each round lasts `least` seconds or more."""
    work()
    best = float("inf")
    for _ in range(ROUNDS):
        wait(device)
        done, begun = 0, time.perf_counter()
        while True:
            work()
            done += 1
            if done % 4 == 0 or device.type == "cpu":
                wait(device)
                if time.perf_counter() - begun > least:
                    break
        best = min(best, (time.perf_counter() - begun) / done)
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(n: int, k: int, d: int, device: torch.device) -> float:
    """FLOP/s of the better of two bf16 products: that of the assignment, and a square one."""
    rates = []
    for m, o, i in ((n, k, d), (k, k, k)):
        a = torch.randn(m, i, device=device, dtype=torch.bfloat16)
        b = torch.randn(o, i, device=device, dtype=torch.bfloat16)
        rates.append(2 * m * o * i / seconds(lambda a=a, b=b: a @ b.T, device))
    return max(rates)


def library_product(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The other way: the library's product with float32 scores written out in chunks, then a compiled reduction."""
    half = c.square().sum(1) / 2
    c16, parts = c.bfloat16(), []
    for chunk in x.split(16384):
        score = torch.mm(chunk.bfloat16(), c16.T, out_dtype=torch.float32)
        parts.append(_reduce(score, half))
    return decide(torch.cat(parts, 1), x, c, half, squared_norms(x, torch.float32), 256)


@torch.compile(dynamic=False)
def _reduce(score: Tensor, half: Tensor) -> Tensor:
    place = torch.arange(score.shape[1], device=score.device, dtype=torch.int32) % 256
    packed = (((score - half).view(torch.int32) & -256) | place).view(torch.float32)
    return packed.view(len(score), -1, 256).amax(2).T.contiguous()


def speed(n: int, k: int, d: int, device: torch.device, rate: float) -> list[str]:
    """Rows of the table of ways to assign."""
    x, c = Made(n, d, device).x_ND, torch.randn(k, d, device=device)
    c[: k // 2] = x[: k // 2].float()
    ways: list[tuple[str, Callable[[], object]]] = [("assign(), as the tokenizer calls it", lambda: assign(x, c))]
    if device.type == "cuda":
        from models.tokenizer import cuda_kernels

        half, c16 = c.square().sum(1) / 2, c.bfloat16()
        ways.append(("the kernel alone", lambda: cuda_kernels.tile_best(x, c16, half)))
        ways.append(("library product, scores written out, compiled reduction", lambda: library_product(x, c)))
        for rows, depth, warps, stages in ((128, 64, 8, 4), (128, 128, 8, 2), (64, 64, 4, 4)):

            def with_shape(rows=rows, depth=depth, warps=warps, stages=stages):
                names, new = ("ROWS", "DEPTH", "WARPS", "STAGES"), (rows, depth, warps, stages)
                old = [getattr(cuda_kernels, name) for name in names]
                for name, value in zip(names, new):
                    setattr(cuda_kernels, name, value)
                try:
                    cuda_kernels.tile_best(x, c16, half)
                finally:
                    for name, value in zip(names, old):
                        setattr(cuda_kernels, name, value)

            ways.append((f"kernel, {rows} rows, depth {depth}, {warps} warps, {stages} stages", with_shape))
    lines = []
    for name, way in ways:
        try:
            took = seconds(way, device)
        except Exception as error:  # a shape that does not fit the chip is a row of the table, not the end of it
            traceback.print_exc()
            lines.append(f"| {name} | failed: {type(error).__name__} | | |")
            continue
        flops = 2 * n * k * d / took
        lines.append(f"| {name} | {n / took / 1e6:.2f} | {flops / 1e12:.0f} | {flops / rate:.1%} |")
        print(lines[-1], flush=True)
    return lines


def agreement(n: int, k: int, d: int, device: torch.device) -> list[str]:
    """Rows of the table of agreement: against float32 products of the same vectors."""
    lines = []
    made = Made(n + k, d, device, topics=max(k // 2, 1)).x_ND
    data = {
        "topics: centroids are other vectors": (made[:n], made[n:].float()),
        "topics: centroids are means of a fit": (made[:n], rq_kmeans.fit(made[:n], 1, k, 0, iterations=2)[0]),
        "independent normal numbers": (torch.randn(n, d, device=device), torch.randn(k, d, device=device)),
    }
    for name, (x, c) in data.items():
        code = assign(x, c)[0]
        same, worst = 0, 0.0
        for xs, codes in zip(x.split(4096), code.split(4096)):
            xs = xs.float()
            best = torch.addmm(c.square().sum(1), xs, c.T, alpha=-2).argmin(1)
            differ = best != codes
            same += int((~differ).sum())
            if bool(differ.any()):
                ours, least = ((xs[differ] - c[i[differ]]).double().square().sum(1) for i in (codes, best))
                worst = max(worst, float(((ours - least) / least).max()))
        lines.append(f"| {name} | {n:,} | {same / n:.4%} | {worst:.1e} |")
        print(lines[-1], flush=True)
    return lines


def whole_fit(n: int, k: int, d: int, iterations: int, device: torch.device, rate: float) -> list[str]:
    """Rows of the table of a fit, and its codes' use."""
    begun = time.perf_counter()
    data = Made(n, d, device)
    wait(device)
    made = time.perf_counter() - begun
    begun = time.perf_counter()
    books = rq_kmeans.fit(data, LEVELS, k, 0, iterations=iterations, progress=lambda s: print(s, flush=True))
    wait(device)
    fitted = time.perf_counter() - begun
    begun = time.perf_counter()
    codes = rq_kmeans.encode(data, books)
    wait(device)
    encoded = time.perf_counter() - begun
    used = [len(codes[:, level].unique()) / k for level in range(LEVELS)]
    error = total = 0.0
    for x, c in zip(data.chunks(), codes.split(data.step)):
        error += float((x.float() - rq_kmeans.decode(c, books)).square().sum(dtype=torch.float64))
        total += float((x.float() - data.x_ND[:4096].float().mean(0)).square().sum(dtype=torch.float64))
    floor = 2 * n * k * d / rate
    passes = LEVELS * (iterations + 1)
    return [
        f"| vectors made on the device, in chunks | {made:.1f} |",
        f"| fit, {LEVELS} x {k} codes, {iterations} iterations a level, {n:,} vectors of {d} | {fitted:.1f} |",
        f"| floor of the fit: the products of {passes} passes at the matrix rate | {floor * passes:.1f} |",
        f"| encode all | {encoded:.1f} |",
        f"| floor of encoding | {floor * LEVELS:.1f} |",
        "",
        f"Utilisation {', '.join(f'{u:.4f}' for u in used)}; reconstruction loss {error / total:.4f} of the variance;"
        f" peak memory {peak(device)}.",
    ]


def peak(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "not measured on a CPU"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path)
    p.add_argument("--small", action="store_true", help="tiny sizes, on whatever device there is")
    p.add_argument("--vectors", type=int, default=10_000_000, help="of the whole fit; 0 leaves it out")
    p.add_argument("--iterations", type=int, default=20)
    p.add_argument("--commit", default="", help="of the code, where there is no git")
    args = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    k, d, n, check, vectors = 8192, 2048, 1 << 20, 1 << 17, args.vectors
    if args.small:
        k, d, n, check, vectors = 64, 32, 4096, 2048, min(args.vectors, 20_000)
    begun = time.perf_counter()
    rate = matrix_rate(min(n, 1 << 17), k, d, device)
    print(f"matrix rate {rate / 1e12:.1f} TFLOP/s", flush=True)
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    sections = [
        f"# Assignment and fit on a GPU\n\nDate {datetime.now(UTC):%Y-%m-%d}, commit `{args.commit or commit()}`,"
        f" {card}, PyTorch {torch.__version__}, Python {platform.python_version()}.\n\n"
        "    python -m benchmarks.tokenizer.assign_speed --out benchmarks/tokenizer/assign_speed.md\n",
        f"Measured bf16 matrix rate: {rate / 1e12:.0f} TFLOP/s (best of {ROUNDS}; the better of the assignment's"
        " product and a square one).\n",
        f"## Assignment, {k} codes x {d} dimensions, {n:,} bf16 vectors\n\n"
        "| way | million vectors/s | TFLOP/s | share of the matrix rate |\n|---|---|---|---|\n",
        "\n## Agreement with float32\n\n| data | vectors | same centroid | largest relative difference of the squared"
        " distance where not |\n|---|---|---|---|\n",
        f"\n## Fit of {vectors:,} vectors\n\n| what | seconds |\n|---|---|\n",
    ]
    makers = [
        list,
        list,
        lambda: speed(n, k, d, device, rate),
        lambda: agreement(check, k, d, device),
        lambda: whole_fit(vectors, k, d, args.iterations, device, rate),
    ]
    if not vectors:
        del sections[-1], makers[-1]
    text = ""
    for head, make in itertools.zip_longest(sections, makers):
        try:
            text += head + "\n".join(make()) + "\n"
        except Exception as error:  # what was measured before is kept
            traceback.print_exc()
            text += f"{head}\nfailed: {error}\n"
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if args.out:
            args.out.write_text(text)
    print(f"\n{text}\nwhole script: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
