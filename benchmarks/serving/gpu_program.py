"""The exported request on a GPU, without Triton: latency at batch 1, MFU at larger batches, and where the time goes.

    python -m benchmarks.serving.gpu_program --out benchmarks/serving
    python -m benchmarks.serving.gpu_program --out /tmp/x --size tiny --items 5000 --device cpu --batches 1,2 --beam 16

0.935B at the published context (1 + 20 + 256 + 2000 inputs, 405 positions), random weights, a random trie, bfloat16,
the beam as wide as K. A request is copied in from pinned memory, computed by one CUDA graph, and copied out; its time
is the host's clock around all three. Stages are graphs of their own, timed by CUDA events. Beside each stage stand the
floors: its FLOPs at the device's dense peak, and its weights and logits at the memory's bandwidth. Needs torch, numpy.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import commit, hardware
from models.onerec.config import OneRecConfig
from models.onerec.flops import forward_flops
from models.onerec.kernels import Kernels, use_kernels
from models.onerec.loop_barrier import loop_barriers
from models.onerec.model import OneRec
from models.onerec.program import INPUTS, ServingProgram, input_shapes
from models.onerec.sizes import SIZES
from models.tokenizer.trie import Trie
from serving.export.graphs import CudaRecorder, Graphs

PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 SXM and of an H200
BANDWIDTHS = {"H200": 4.8e12, "H100": 3.35e12}  # bytes/s
STATIC_FEATURES = 26
ROUNDS = 3


def build(args: argparse.Namespace) -> ServingProgram:
    """Random weights and a random trie on the device."""
    config = SIZES[args.size](items=args.items, static_features=STATIC_FEATURES, codebook_size=8192)
    rng = np.random.default_rng(0)
    key = np.unique(rng.integers(0, config.codebook_size**3, args.items * 2))
    key = np.sort(rng.choice(key, args.items, replace=False))
    K = config.codebook_size
    sid = np.stack([key // K**2, key // K % K, key % K], 1)
    torch.manual_seed(0)
    with torch.device(args.device):
        model = OneRec(config, torch.from_numpy(sid).to(args.device))
    use_kernels(model, Kernels(inference=args.kernels))
    trie = Trie.build(sid, K).to(args.device)
    return ServingProgram(model, trie, torch.arange(args.items, device=args.device), args.beam, torch.bfloat16)


def requests(config: OneRecConfig, batch: int, beam: int, seed: int) -> list[Tensor]:
    """Full histories of random events, on the host."""
    generator = torch.Generator().manual_seed(seed)
    limits = [config.items, config.author_buckets, config.tag_buckets, 32, 16, 24, 256]
    found: dict[str, Tensor] = {}
    for name, shape in input_shapes(config).items():
        if len(shape) == 2:
            found[name] = torch.stack([torch.randint(n, (batch, shape[0]), generator=generator) for n in limits], -1)
        else:
            found[name] = torch.randint(config.static_buckets, (batch, *shape), generator=generator)
    found["lengths"] = torch.tensor([[config.short_len, config.positive_len, config.lifelong_len]]).expand(batch, -1)
    found["beam"] = torch.full((batch,), beam)
    return [found[name].int().contiguous() for name in INPUTS]


def bandwidth(device: str) -> float:
    """Bytes/s of the card's memory; an H100's where the card is not known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((rate for card, rate in BANDWIDTHS.items() if card in name), BANDWIDTHS["H100"])


class Stages:
    """The program's parts, each compiled, and the whole request that runs them one after the other."""

    def __init__(self, program: ServingProgram, compiled: bool) -> None:
        torch._dynamo.config.recompile_limit = 64  # the stages of all levels share one code object
        wrap: Callable = torch.compile if compiled else (lambda f: f)
        levels = range(program.model.config.levels)
        self.program, self.context, self.finish = program, wrap(program.context), wrap(program.finish)
        self.decode = [wrap(lambda context, beams, level=i: program.decode(level, context, beams)) for i in levels]
        self.choose = [
            wrap(lambda logits, cache, beams, beam, level=i: program.choose(level, logits, cache, beams, beam))
            for i in levels
        ]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.run(inputs, lambda name, stage, *values: stage(*values))

    def run(self, inputs: Sequence[Tensor], call: Callable) -> tuple[Tensor, ...]:
        """`call(name, stage, *values)` runs a stage; a caller may time it."""
        *events, beam = inputs
        context = call("context", self.context, *events)
        beams = self.program.start(context)
        for i, (decode, choose) in enumerate(zip(self.decode, self.choose)):
            logits, cache = call(f"decode {i + 1}", decode, context, beams)
            beams = call(f"trie and top-k {i + 1}", choose, logits, cache, beams, beam)
        return call("items", self.finish, context, beams)


def milliseconds(replay: Callable[[], Any], repeats: int) -> float:
    """Mean time of one replay by CUDA events."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    replay()
    begin.record()
    for _ in range(repeats):
        replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def split(stages: Stages, inputs: Sequence[Tensor], repeats: int) -> dict[str, float]:
    """Milliseconds of each stage, captured alone, in a graph that reads what the stage before left."""
    found = {}

    def call(name: str, stage: Callable, *values: Any) -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            stage(*values)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = stage(*values)
        found[name] = milliseconds(graph.replay, repeats)
        held.append(graph)
        return kept

    held: list[torch.cuda.CUDAGraph] = []
    stages.run(inputs, call)
    return found


def stage_flops(c: OneRecConfig, beam: int, batch: int) -> dict[str, float]:
    """FLOPs of each stage; trie and top-k are none."""
    D, K = c.d_model, c.codebook_size
    flops = forward_flops(c)
    found = {"context": batch * sum(flops[name] for name in ("projections", "qformer", "encoder", "context_kv"))}
    moe = c.decoder_layers - c.decoder_dense_layers
    experts = D * c.experts + c.experts_per_token * 3 * D * c.expert_dim
    ffn = 2.0 * (2 * D * c.ffn_dim * c.decoder_dense_layers + moe * experts)
    token = c.decoder_layers * (12.0 * D * D + 4.0 * c.positions * D) + ffn + 2.0 * D * (D + K)
    return found | {f"decode {i + 1}": batch * (beam if i else 1) * token for i in range(c.levels)}


def floors(program: ServingProgram, batch: int) -> dict[str, tuple[float, float]]:
    """FLOPs and bytes of each stage: weights once (of experts, those that can be met), logits and candidates."""
    c, W = program.model.config, program.width
    D, K, E = c.d_model, c.codebook_size, 3 * c.d_model * c.expert_dim
    flops = stage_flops(c, W, batch)
    modules = (program.model.pathways, program.model.encoder)
    weights = sum(p.numel() for m in modules for n, p in m.named_parameters() if p.ndim == 2 and ".event." not in n)
    found = {"context": (flops["context"], 2.0 * weights)}
    moe = c.decoder_layers - c.decoder_dense_layers
    for level in range(c.levels):
        beams = 1 if level == 0 else W
        touched = min(c.experts, batch * beams * c.experts_per_token) * E * moe
        dense = c.decoder_layers * 6 * D * D + 2 * D * c.ffn_dim * c.decoder_dense_layers + D * (D + K)
        logits = 2.0 * batch * beams * K
        kv = 4.0 * batch * c.decoder_layers * c.positions * D
        found[f"decode {level + 1}"] = (flops[f"decode {level + 1}"], 2.0 * (touched + dense) + logits + kv)
        candidates = batch * beams * program.widest[level]
        found[f"trie and top-k {level + 1}"] = (0.0, logits + 8.0 * candidates)
    found["items"] = (0.0, 0.0)
    return found


def latencies(
    run: Callable[[], Sequence[Tensor]], like: Sequence[Tensor], args: argparse.Namespace
) -> tuple[list[tuple[float, float]], Tensor]:
    """p50 and p99 in ms of each round, from the call to the answer in host memory, and the items of the last answer."""
    cuda = args.device == "cuda"
    answer, rounds = [torch.empty(x.shape, dtype=x.dtype, pin_memory=cuda) for x in like], []
    for _ in range(ROUNDS):
        times = []
        for _ in range(args.repeats + 1):
            begun = time.perf_counter()
            for to, x in zip(answer, run()):
                to.copy_(x, non_blocking=True)
            if cuda:
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - begun))
        rounds.append((float(np.median(times[1:])), float(np.percentile(times[1:], 99))))
    return rounds, answer[0]


def profiled(run: Callable[[], Any], repeats: int = 5) -> str:
    """The kernels of `repeats` requests, by their total time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    table = profile.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90)
    return f"{repeats} requests\n{table}\n"


def packaged(program: ServingProgram, batches: Sequence[int], args: argparse.Namespace) -> list[str]:
    """The same request as an AOTInductor package with a dynamic batch, in CUDA graphs: lines of the page."""
    from serving.export.compiling import compile_package
    from serving.export.loading import load_package

    path, begun, largest = args.out / "program.pt2", time.monotonic(), max(batches)
    example = dict(zip(INPUTS, requests(program.model.config, 2, args.beam, 0)))
    compile_package(program, {n: t for n, t in example.items() if n != "beam"}, path, largest)
    seconds = time.monotonic() - begun
    print(f"package compiled after {seconds:.0f} s", flush=True)
    run = load_package(path)
    lines = ["", f"As one AOTInductor package ({path.stat().st_size / 1e9:.1f} GB, compiled in {seconds:.0f} s):", ""]
    lines += ["| batch | p50 ms | p99 ms | of its items, those of eager bfloat16 too | place by place |"]
    lines += ["|---|---|---|---|---|"]
    graphs = Graphs(run, CudaRecorder()) if args.device == "cuda" else None
    with torch.no_grad():
        for batch in batches:
            host = requests(program.model.config, batch, args.beam, batch)
            host = [x.pin_memory() for x in host] if graphs else host
            inputs = [x.to(args.device) for x in host]
            outputs = run(*inputs)
            if graphs:
                graphs.capture(batch, inputs)
            call = functools.partial(graphs, batch, host) if graphs else functools.partial(run, *inputs)
            rounds, answer = latencies(call, outputs, args)
            eager = program(*inputs)[0].cpu()
            same = float((answer == eager).float().mean())
            both = float(np.mean([np.isin(a, e).mean() for a, e in zip(answer.numpy(), eager.numpy())]))
            p50, p99 = (float(np.median([r[i] for r in rounds])) for i in (0, 1))
            lines.append(f"| {batch} | {p50:.2f} | {p99:.2f} | {both:.4f} | {same:.4f} |")
            print(lines[-1], flush=True)
    if not args.keep:
        path.unlink()
    return lines


def measure(stages: Stages, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """One batch size: the request from host to host, and the split."""
    cuda, program = args.device == "cuda", stages.program
    host = [x.pin_memory() if cuda else x for x in requests(program.model.config, batch, args.beam, batch)]
    inputs = [x.to(args.device) for x in host]
    begun = time.monotonic()
    with torch.no_grad():
        outputs = stages(*inputs)
        prepared = time.monotonic() - begun
        print(f"batch {batch}: compiled and run after {prepared:.0f} s", flush=True)
        graphs = Graphs(stages, CudaRecorder()) if cuda else None
        if graphs:
            graphs.capture(batch, inputs)
            graphs.freeze()
        rounds, answer = latencies(lambda: graphs(batch, host) if graphs else stages(*inputs), outputs, args)
        stage_ms = split(stages, inputs, 20) if cuda else {}
        if graphs and args.profile:
            text = profiled(lambda: graphs(batch, host))
            (args.out / f"gpu_program_profile_{batch}.txt").write_text(text)
    limits = floors(program, batch)
    flops = sum(f for f, _ in limits.values())
    p50, p99 = (float(np.median([r[i] for r in rounds])) for i in (0, 1))
    return {
        "batch": batch,
        "rounds": rounds,
        "p50": p50,
        "p99": p99,
        "mfu": flops / (1e-3 * p50) / PEAK,
        "gflop": flops / batch / 1e9,
        "stages": stage_ms,
        "floors": limits,
        "same": float((answer == outputs[0].cpu()).float().mean()),
        "captures": graphs.captures if graphs else 0,
        "memory": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
    }


def page(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The Markdown table."""
    lines = [
        "# The exported request on a GPU",
        "",
        f"{hardware(args.device)}; torch {torch.__version__}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}.",
        f"`python -m benchmarks.serving.gpu_program --size {args.size} --items {args.items} --beam {args.beam}`"
        f" ({args.device}), bfloat16, beam = K = {args.beam}, full histories, random weights and trie;"
        f" attention by {'our kernels' if args.kernels else 'PyTorch'}.",
        "A request from pinned host memory to pinned host memory, one CUDA graph replay; median of three rounds of"
        f" {args.repeats} requests.",
        f"MFU: counted FLOPs over p50 over {PEAK / 1e12:.0f} TFLOP/s.",
        "",
        "| batch | p50 ms | p99 ms | p50 of the rounds | ms a user | GFLOP a user | MFU | graphs | GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        rounds = " ".join(f"{p:.2f}" for p, _ in r["rounds"])
        lines.append(
            f"| {r['batch']} | {r['p50']:.2f} | {r['p99']:.2f} | {rounds} | {r['p50'] / r['batch']:.2f} |"
            f" {r['gflop']:.0f} | {r['mfu']:.1%} | {r['captures']} | {r['memory']:.1f} |"
        )
    staged = [r for r in results if r["stages"]]
    if staged:
        lines += ["", "ms a batch by stage (in brackets the floor by FLOPs / by bytes):", ""]
        lines.append("| stage | " + " | ".join(f"batch {r['batch']}" for r in staged) + " |")
        lines.append("|---|" + "---|" * len(staged))
        for name in staged[0]["stages"]:
            cells = [
                f"{r['stages'][name]:.3f} ({1e3 * r['floors'][name][0] / PEAK:.3f} /"
                f" {1e3 * r['floors'][name][1] / bandwidth(args.device):.3f})"
                for r in staged
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("| sum | " + " | ".join(f"{sum(r['stages'].values()):.3f}" for r in staged) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency and MFU of the exported request.")
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu_program.md")
    parser.add_argument("--size", default="0.935b", choices=list(SIZES))
    parser.add_argument("--items", type=int, default=4_000_000)
    parser.add_argument("--beam", type=int, default=512)
    parser.add_argument("--batches", default="1,8,16,32,64")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=140, help="no further batch size is begun after these (140)")
    parser.add_argument("--package", action="store_true", help="measure the AOTInductor package too (needs pyarrow)")
    parser.add_argument("--profile", action="store_true", help="write the kernels and their times, a file a batch")
    parser.add_argument("--keep", action="store_true", help="leave the package in --out (for gpu_server)")
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--no-kernels", dest="kernels", action="store_false", help="attention as PyTorch has it")
    args = parser.parse_args()
    begun, results = time.monotonic(), []
    args.out.mkdir(parents=True, exist_ok=True)
    stages = Stages(build(args), args.compiled)
    print(f"built after {time.monotonic() - begun:.0f} s, most children {stages.program.widest}", flush=True)
    for batch in map(int, args.batches.split(",")):
        if time.monotonic() - begun > args.seconds:
            print(f"batch {batch} left out: {args.seconds:.0f} s are over", file=sys.stderr)
            continue
        with loop_barriers():
            results.append(measure(stages, batch, args))
        (args.out / "gpu_program.md").write_text(page(results, args))
        print(page(results[-1:], args), flush=True)
    if args.package:
        with (args.out / "gpu_program.md").open("a") as file:
            file.write("\n".join(packaged(stages.program, [r["batch"] for r in results], args)) + "\n")
    print((args.out / "gpu_program.md").read_text())


if __name__ == "__main__":
    main()
