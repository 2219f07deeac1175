"""What keeping labels at a refit is worth: next-token loss after a refit, with and without matching.

    python -m benchmarks.tokenizer.refit --prepared prepared/refit --device cuda --jobs 6

--prepared is written by benchmarks.tokenizer.refit_prepare. A reduced model is pre-trained on the days up to the fit
with the tokenizer fitted there. Then the tokenizer is refitted, and training goes on over those days and the refit's,
once with every way of taking over the codes, at the rate of a later day or at a rate that warms up to bootstrap's and
falls again. The loss is that of rows of that day that are never trained on. What is done is kept in --results.

Legend: B rows, M targets, L levels, K codes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.machine import commit, hardware
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.tokenizer.carry import carry_code_embeddings
from models.training.losses import ntp_loss
from models.training.optimizer import learning_rate, make_optimizer, set_rate

BATCH, TARGETS, HELD_ROWS, NEAR = 64, 4, 768, 0.02
RATES = {"lr_sparse": 3e-3, "lr_dense": 1.5e-3, "weight_decay": 0.05}  # of PretrainConfig, as the two below
DAILY, WARMUP, CLIP = 0.1, 0.05, 1.0
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """`codes`: table to go on with. `carried`: code embeddings follow the matching. `labels`: False puts the codes in
    another order, as a fit without matching does. `fresh`: new code embeddings. `moments`: Adam's go on. `warmed`: at
    the warmed rate instead of a later day's."""

    codes: str = "warm"
    carried: bool = True
    labels: bool = True
    fresh: bool = False
    moments: bool = True
    warmed: bool = True


WAYS = {
    "no refit, a later day's rate": Way(codes="fit", carried=False, warmed=False),
    "refit, matched, warmed rate": Way(),
    "refit, not matched, new code embeddings, warmed rate": Way(labels=False, carried=False, fresh=True),
    "refit, matched, a later day's rate": Way(warmed=False),
    "refit, not matched, old code embeddings, warmed rate": Way(labels=False, carried=False),
    "refit from anew, matched, warmed rate": Way(codes="cold"),
    "refit, matched, warmed rate, Adam's moments new": Way(moments=False),
    "no refit, warmed rate": Way(codes="fit", carried=False),
    "refit, not matched, new code embeddings, a later day's rate": Way(
        labels=False, carried=False, fresh=True, warmed=False
    ),
}


def reduced_config(codebook_size: int, items: int, static: int) -> OneRecConfig:
    """A model of the published structure that a CPU trains in a minute."""
    return OneRecConfig(
        codebook_size=codebook_size, items=items, static_features=static,
        d_model=64, encoder_layers=1, decoder_layers=1, heads=2, ffn_dim=96, experts=4, expert_dim=48, short_len=10,
        positive_len=32, lifelong_len=16, lifelong_queries=2, lifelong_blocks=1,
    )  # fmt: skip


class Rows:
    """Padded rows of some parts, end to end, on a device; a batch is a gather."""

    def __init__(self, file: Path, parts: tuple[str, ...], device: str) -> None:
        with np.load(file, allow_pickle=False) as f:
            names = [k.removeprefix("day_") for k in f.files if k.startswith("day_")]
            arrays = {k: np.concatenate([f[f"{part}_{k}"] for part in parts]) for k in names}
            self.day_rows = len(f["day_static"])  # the last ones, if the day is among the parts
        kept = {k: torch.from_numpy(v if v.dtype == bool else v.astype(np.int64)) for k, v in arrays.items()}
        self.tensors = {k: v.to(device) for k, v in kept.items()}

    def __len__(self) -> int:
        return len(self.tensors["static"])

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        index = torch.from_numpy(rows).to(self.tensors["static"].device)
        return {k: v[index] for k, v in self.tensors.items()}


def loss_of(model: OneRec, data: Rows, rows: np.ndarray) -> float:
    """Mean next-token loss of an item, over all its levels."""
    model.eval()
    with torch.no_grad():
        total = [float(step_loss(model, data.batch(part))[1].sum()) for part in np.array_split(rows, 3)]
    model.train()
    return float(np.mean(total))


def step_loss(model: OneRec, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    z, mask = model.encode(batch)
    return ntp_loss(model, batch["targets"], batch["target_mask"].float(), z, mask)


def train(
    model: OneRec, optimizer, data: Rows, rows: np.ndarray, steps: int, warmed: bool, seed: int, held=None, every=0
) -> list[tuple[int, float]]:
    """Train in place; [(step, loss of the held rows)] every so many steps."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(rows) for _ in range(1 + steps * BATCH // len(rows))])
    curve = [(0, loss_of(model, data, held))] if held is not None else []
    model.train()
    for step in range(steps):
        set_rate(optimizer, learning_rate(step, steps, WARMUP) if warmed else DAILY)
        loss, _ = step_loss(model, data.batch(order[step * BATCH : (step + 1) * BATCH]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if held is not None and (step + 1) % every == 0:
            curve.append((step + 1, loss_of(model, data, held)))
    return curve


def load(args: argparse.Namespace) -> dict[str, np.ndarray]:
    with np.load(args.prepared / "tables.npz", allow_pickle=False) as f:
        return {k: f[k].astype(np.int64) if f[k].dtype == np.int16 else f[k] for k in f.files}


def model_of(sid_NL: np.ndarray, k: int, static: int, seed: int, device: str) -> OneRec:
    torch.manual_seed(seed)
    return OneRec(reduced_config(k, len(sid_NL), static), torch.from_numpy(sid_NL)).to(device)


def pretrained(seed: int, args: argparse.Namespace) -> int:
    """Weights and moments before the refit, once a seed."""
    file = args.results / f"pretrained_{seed}.safetensors"
    if not file.exists():
        torch.set_num_threads(1)
        data, tables = Rows(args.prepared / "rows.npz", ("past",), args.device), load(args)
        static, k = data.tensors["static"].shape[1], int(tables["codebook"][0])
        model = model_of(tables[f"fit_{seed}"], k, static, seed, args.device)
        optimizer, names = make_optimizer(model, **RATES)
        train(model, optimizer, data, np.arange(len(data)), args.steps, True, seed)
        state = {f"model/{n}": v for n, v in model.state_dict().items() if n != "sid_NL"}
        for p, s in optimizer.state.items():
            state |= {f"{key}/{names[id(p)]}": s[key].detach() for key in MOMENTS}
        save_file({n: v.cpu().contiguous() for n, v in state.items()}, file)
    return seed


def one(seed: int, name: str, args: argparse.Namespace) -> tuple[int, str, list[tuple[int, float]]]:
    """The curve of one way."""
    torch.set_num_threads(1)
    way, tables = WAYS[name], load(args)
    data, k = Rows(args.prepared / "rows.npz", ("past", "day"), args.device), int(tables["codebook"][0])
    sid_NL, state = tables[f"{way.codes}_{seed}"], load_file(args.results / f"pretrained_{seed}.safetensors")
    if way.carried:
        state = carry_code_embeddings(state, list(tables[f"{way.codes}_{seed}_source"]))
    if not way.labels:
        rng = np.random.default_rng(seed)
        sid_NL = np.stack([rng.permutation(k)[sid_NL[:, level]] for level in range(sid_NL.shape[1])], 1)
    model = model_of(sid_NL, k, data.tensors["static"].shape[1], seed + 1000, args.device)
    own = model.state_dict()
    for n, v in state.items():
        kind, _, key = n.partition("/")
        if kind == "model" and not (way.fresh and (key.startswith("code.") or key == "code_bias_LK")):
            own[key].copy_(v)
    optimizer, names = make_optimizer(model, **RATES)
    if way.moments and not way.fresh:
        for p in model.parameters():
            if f"step/{names[id(p)]}" in state:
                optimizer.state[p] = {m: state[f"{m}/{names[id(p)]}"].to(p.device) for m in MOMENTS}
    day = len(data) - np.random.default_rng(0).permutation(data.day_rows) - 1
    held = day[:HELD_ROWS]
    rest = np.setdiff1d(np.arange(len(data)), held)
    return seed, name, train(model, optimizer, data, rest, args.more, way.warmed, seed, held, args.every)


def page(curves: dict[str, dict[str, list]], args: argparse.Namespace) -> str:
    """A row a way: the steps after which it is where it was without a refit; the mean curve."""
    curves = {w: dict(sorted(c.items())) for w, c in curves.items()}
    ways = [w for w in WAYS if w in curves]
    steps = [s for s, _ in next(iter(curves[ways[0]].values()))]
    mean = {w: np.mean([[v for _, v in c] for c in curves[w].values()], 0) for w in ways}
    frozen = {seed: c[0][1] for seed, c in curves[ways[0]].items()}
    shown = steps[:: max(1, len(steps) // 8)]
    text = "| way | seeds | steps to recover, each seed | at the start | "
    text += " | ".join(f"loss at {s}" for s in shown) + " |\n|---|---|---|---|" + "---|" * len(shown) + "\n"
    for w in ways:
        after = []
        for seed, c in curves[w].items():
            reached = [s for s, v in c if v <= frozen[seed] * (1 + NEAR)]
            after.append(str(reached[0]) if reached else f"more than {steps[-1]}")
        spread = np.ptp([c[0][1] for c in curves[w].values()]) / 2
        text += f"| {w} | {len(curves[w])} | {', '.join(after)} | {mean[w][0]:.3f} ± {spread:.3f} | "
        text += " | ".join(f"{mean[w][steps.index(s)]:.3f}" for s in shown) + " |\n"
    tables = load(args)
    for name in ("warm", "cold"):
        share = np.mean([tables[f"{name}_{seed}_churn"] for seed in args.seeds], 0)
        text += f"\nChurn of the refit {'from the old centroids' if name == 'warm' else 'from anew'}, matched:"
        text += f" first code {share[0]:.1%}, two codes {share[1]:.1%}, whole ID {share[2]:.1%}.\n"
    return text


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder written by refit_prepare")
    p.add_argument("--results", type=Path, default=Path("build/refit"))
    p.add_argument("--steps", type=int, default=600, help="steps of pre-training")
    p.add_argument("--more", type=int, default=400, help="steps after the refit")
    p.add_argument("--every", type=int, default=20)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--device", default="cpu")
    p.add_argument("--jobs", type=int, default=1, help="processes side by side")
    p.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no way is begun")
    p.add_argument("--commit", default="", help="of the code, where there is no git")
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = p.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    begun, curves = time.monotonic(), dict[str, dict[str, list]]()
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(pretrained, args.seeds, [args] * len(args.seeds)))
        print(f"pre-trained: {time.monotonic() - begun:.0f} s", flush=True)
        tasks = [pool.submit(one, seed, name, args) for name in WAYS for seed in args.seeds]
        for task in as_completed(tasks):
            if task.cancelled():
                continue
            seed, name, curve = task.result()
            curves.setdefault(name, {})[str(seed)] = curve
            (args.results / "curves.json").write_text(json.dumps(curves) + "\n")
            print(seed, name, [round(v, 3) for _, v in curve], f"{time.monotonic() - begun:.0f} s", flush=True)
            if time.monotonic() - begun > args.budget:
                pool.shutdown(wait=False, cancel_futures=True)
    about = {
        "command": "`python -m benchmarks.tokenizer.refit --prepared prepared/refit"
        f" --device {args.device} --steps {args.steps} --more {args.more}`",
        "hardware": hardware(args.device),
        "commit": args.commit or commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}",
        "seconds": f"{time.monotonic() - begun:.0f}",
    }
    text = f"# Next-token loss after a refit\n\nMeans over seeds. Pre-trained {args.steps} steps of {BATCH} rows;"
    text += f" after the refit {args.more} steps, at {DAILY} of the rate or at one that warms up to the whole rate over"
    text += f" {WARMUP:.0%} of the steps and falls to {DAILY}. Loss in nats an item, of {HELD_ROWS} rows of the refit's"
    text += f" day that are not trained on. Recovered: within {NEAR:.0%} of the loss of the same seed without a refit"
    text += " before any step. Losses of different codes of one size compare only roughly.\n\n"
    text += page(curves, args) + "\n" + "\n".join(f"- {k}: {v}" for k, v in about.items()) + "\n"
    args.out.write_text(text)
    args.out.with_suffix(".json").write_text(json.dumps(curves) + "\n")
    print(text)


if __name__ == "__main__":
    main()
