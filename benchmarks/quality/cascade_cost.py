"""One model or a cascade: FLOPs, latency, throughput, memory and cost of a request, on the same device.

    python -m benchmarks.quality.cascade_cost --prepared build/quality/kuairand_onerec --device cuda

Both as they would be served: a module of fixed shapes, full histories, replayed as one CUDA graph without a compiler
(on a CPU run as it is), from pinned host memory to the answer in host memory; the shapes of the KuaiRand rows, random
weights, in float32 and bfloat16. The cascade scores all items by the user tower, takes the best, and ranks them with
DIN + SIM; OneRec is `models/onerec/program.py` with evaluation's beam. FLOPs are counted from shapes, not measured.
Writes cascade_cost.json, which `cascade_page.py` sets beside the quality.

Legend: B users, K candidates, N items, W beam width.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import commit, hardware
from benchmarks.quality.data import MAX_HISTORY
from benchmarks.quality.din import Ranker, RankerConfig
from benchmarks.quality.first_day import config_of
from benchmarks.quality.first_day_step import Recipe
from benchmarks.quality.kuairand_prepare import LAST
from benchmarks.quality.kuairand_trained import WIDTH, TwoTower
from benchmarks.quality.recipes import RECIPES, up_to
from benchmarks.serving.gpu_program import floors, latencies, requests
from models.evaluation.evaluate import BEAM
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.pathways import HISTORIES
from models.onerec.program import ServingProgram
from models.training.checkpoint import Tokenizer
from models.training.pretrain import static_features
from serving.export.graphs import CudaRecorder, Graphs

PEAK = {"float32": 67e12, "bfloat16": 989e12}  # dense FLOP/s of an H100 or H200 SXM
TOP = 100


class Cascade(nn.Module):
    """Retrieval of K candidates by exact inner products, and their ranking, as one module of fixed shapes."""

    def __init__(self, retrieval: TwoTower, ranker: Ranker, candidates: int) -> None:
        super().__init__()
        self.retrieval, self.ranker, self.candidates = retrieval.eval(), ranker.eval(), candidates
        with torch.no_grad():
            self.register_buffer("table_ND", retrieval.table())

    def forward(
        self, static: Tensor, short: Tensor, positive: Tensor, lifelong: Tensor, lengths: Tensor, beam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inputs as of OneRec's program (`beam` is not used). Catalogue indices [B, TOP], best first, and scores."""
        batch = {"static": static.long()}
        for i, (name, events) in enumerate(zip(HISTORIES, (short, positive, lifelong))):
            place = torch.arange(events.shape[1], device=events.device)
            batch[name], batch[f"{name}_mask"] = events.long(), place >= events.shape[1] - lengths[:, i : i + 1]
        liked_BT = batch["positive"][:, -MAX_HISTORY:, 0]
        user_BD = self.retrieval(liked_BT, self.table_ND)[:, -1]
        logp_BN = F.linear(user_BD, self.table_ND[:-1]).float().log_softmax(-1)
        logp_BK, item_BK = logp_BN.topk(self.candidates, dim=1)
        score_BK = logp_BK + F.logsigmoid(self.ranker(batch, item_BK).float())
        score, order = score_BK.topk(min(TOP, self.candidates), dim=1)
        return item_BK.gather(1, order), score

    def flops(self) -> dict[str, float]:
        """Of one request with full histories, by stage. The item tower is computed once a release, not here."""
        d, items = WIDTH, self.table_ND.shape[0] - 1
        user = MAX_HISTORY * MAX_HISTORY * 2.0 * d + 2 * 2.0 * d * 2 * d  # weighted means of all places; both layers
        return {"retrieval": user + 2.0 * d * items, "ranking": self.ranker.flops(self.candidates)}


def build(
    prepared: Path, recipe: Recipe, candidates: Sequence[int], device: str
) -> tuple[dict[str, nn.Module], OneRecConfig]:
    """OneRec's program and a cascade for each number of candidates, float32, random weights; OneRec's configuration."""
    tok = Tokenizer.load(prepared / "tokenizer" / "once_1")
    items, static = len(tok.catalogue), static_features(up_to(prepared, LAST)[0])
    config = config_of(recipe, tok, static)
    torch.manual_seed(0)
    model = OneRec(config, torch.from_numpy(tok.sid_NL)).to(device)
    ids = torch.from_numpy(tok.catalogue.item_ids).to(device)
    found: dict[str, nn.Module] = {"OneRec": ServingProgram(model, tok.trie.to(device), ids, BEAM)}
    generator = torch.Generator().manual_seed(0)
    limits = (config.author_buckets, config.tag_buckets, 24)
    about = torch.stack([torch.randint(n, (items + 1,), generator=generator) for n in limits], -1)
    ranker = Ranker(RankerConfig(items=items, static_features=static), about).to(device)
    retrieval = TwoTower(items).to(device)
    for k in candidates:
        found[f"cascade, {k} candidates"] = Cascade(retrieval, ranker, k)
    return {name: module.to(device) for name, module in found.items()}, config


def flops_of(module: nn.Module) -> dict[str, float]:
    if isinstance(module, ServingProgram):
        return {name: flops for name, (flops, _) in floors(module, 1).items() if flops}
    assert isinstance(module, Cascade)
    return module.flops()


def weights(module: nn.Module) -> int:
    """Bytes of parameters and buffers, each once."""
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def measure(module: nn.Module, config: Any, batch: int, half: bool, args: argparse.Namespace) -> dict[str, Any]:
    """p50 and p99 of a request of `batch` users, and the memory that it allocates at most beside the weights."""
    cuda = args.device == "cuda"
    host = [x.pin_memory() if cuda else x for x in requests(config, batch, BEAM, batch)]
    inputs = [x.to(args.device) for x in host]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            return module(*values)

    with torch.no_grad():
        if cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        outputs = run(*inputs)
        peak = torch.cuda.max_memory_allocated() - before if cuda else None
        graphs = Graphs(run, CudaRecorder()) if cuda else None
        if graphs:
            graphs.capture(batch, inputs)
        call: Callable = lambda: graphs(batch, host) if graphs else run(*inputs)  # noqa: E731
        rounds, _ = latencies(call, outputs, args)
    p50, p99 = (float(np.median([r[i] for r in rounds])) for i in (0, 1))
    return {"batch": batch, "precision": "bfloat16" if half else "float32", "p50": p50, "p99": p99, "peak_bytes": peak}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder prepared by kuairand_onerec")
    p.add_argument("--recipe", choices=list(RECIPES), default="16 epochs, dropout .2", help="whose width OneRec has")
    p.add_argument("--candidates", type=int, nargs="+", default=[100, 200, 500])
    p.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    p.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=sorted(PEAK))
    p.add_argument("--repeats", type=int, default=50, help="requests a round, three rounds (50)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, default=Path("build/quality/cascade_cost.json"))
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    modules, config = build(args.prepared, RECIPES[args.recipe], args.candidates, args.device)
    about = {
        "device": hardware(args.device),
        "commit": commit(),
        "torch": torch.__version__,
        "beam": BEAM,
        "recipe": args.recipe,
    }
    about |= {"items": config.items, "date": datetime.now(UTC).date().isoformat(), "repeats": args.repeats}
    results: dict[str, Any] = {"about": about, "systems": {}}
    for name, module in modules.items():
        flops, begun = flops_of(module), time.monotonic()
        found = {"flops": flops, "weight_bytes": weights(module), "runs": []}
        results["systems"][name] = found
        for precision in args.precisions:
            for batch in args.batches:
                run = measure(module, config, batch, precision == "bfloat16", args)
                of_peak = sum(flops.values()) * batch / (1e-3 * run["p50"]) / PEAK[precision]
                run["mfu"] = of_peak if args.device == "cuda" else None
                found["runs"].append(run)
                print(f"{time.monotonic() - begun:5.0f} s  {name}: {json.dumps(run)}", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
