"""What keeping labels at a refit is worth: next-token loss after a refit, with and without matching.

    python -m benchmarks.tokenizer.refit --workspace var/kuairand-pure --fit 2022-05-02 --refit 2022-05-05

A reduced model is pre-trained on the days up to `--fit` with the tokenizer fitted there. Then the tokenizer is refitted
on all days up to `--refit`, and training goes on over that day's rows, at the rate of a later day, once with every way
of taking over the codes. The loss is that of rows of that day that are never trained on.

Legend: B rows, M targets, L levels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.tokenizer.page import heading
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.tokenizer import refresh
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer, load_model, save_model
from models.training.data import TrainingSet
from models.training.losses import ntp_loss
from models.training.pretrain import PretrainConfig, make_optimizer, static_features

BATCH, TARGETS, HELD_ROWS, NEAR = 64, 4, 768, 0.02


def reduced(tok: Tokenizer, path: Path) -> OneRec:
    """A model of the published structure that a CPU trains in a minute."""
    config = OneRecConfig(
        codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static_features(path),
        d_model=64, encoder_layers=1, decoder_layers=1, heads=2, ffn_dim=96, experts=4, expert_dim=48, short_len=10,
        positive_len=32, lifelong_len=16, lifelong_queries=2, lifelong_blocks=1,
    )  # fmt: skip
    return OneRec(config, torch.from_numpy(tok.sid_NL))


def loss_of(model: OneRec, data: TrainingSet, rows: np.ndarray) -> float:
    """Mean next-token loss of an item, over all its levels."""
    model.eval()
    with torch.no_grad():
        total = []
        for part in np.array_split(rows, max(1, len(rows) // 256)):
            batch = data.batch(part, TARGETS)
            z, mask = model.encode(batch)
            total.append(float(ntp_loss(model, batch["targets"], batch["target_mask"].float(), z, mask)[1].sum()))
    model.train()
    return float(np.mean(total))


def train(model: OneRec, data: TrainingSet, rows: np.ndarray, steps: int, rate: float, seed: int, held=None, every=0):
    """Train in place; [(step, loss of the held rows)] every so many steps."""
    config = PretrainConfig()
    optimizer, _ = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate
    batches = [b for epoch in range(1 + steps * BATCH // len(rows)) for b in data.batches(rows, BATCH, seed + epoch)]
    curve = [(0, loss_of(model, data, held))] if held is not None else []
    model.train()
    for step, part in enumerate(batches[:steps], 1):
        batch = data.batch(part, TARGETS)
        z, mask = model.encode(batch)
        loss, _ = ntp_loss(model, batch["targets"], batch["target_mask"].float(), z, mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        if held is not None and step % every == 0:
            curve.append((step, loss_of(model, data, held)))
    return curve


def shuffled(tok: Tokenizer, seed: int) -> Tokenizer:
    """The same codebooks in another order: what a fit without matching gives."""
    rng = np.random.default_rng(seed)
    sid_NL = np.stack([rng.permutation(tok.codebook_size)[tok.sid_NL[:, level]] for level in range(3)], 1)
    return Tokenizer(tok.catalogue, sid_NL, Trie.build(sid_NL, tok.codebook_size), tok.codebook_size)


def taken_over(old: OneRec, tok: Tokenizer, fresh_codes: bool, path: Path) -> OneRec:
    """The old model with another SID table; its code embeddings as they are, or new ones."""
    new, state = reduced(tok, path), old.state_dict()
    own = new.state_dict()
    replaced = {k for k in state if k == "sid_NL" or (fresh_codes and (k.startswith("code.") or k == "code_bias_LK"))}
    new.load_state_dict({k: own[k] if k in replaced or state[k].shape != own[k].shape else state[k] for k in own})
    return new


def refitted(args: argparse.Namespace, history: list[Path], before: Path, out: Path, seed: int, warm: bool) -> dict:
    books = refresh._books
    if not warm:
        refresh._books = lambda v, size, s, variant, warm=None: books(v, size, s, variant)
    try:
        out.mkdir()
        return refresh.refresh_tokenizer(
            items=args.workspace / "lake" / "items" / f"dt={args.refit}" / "part-0.parquet", training_sets=history,
            previous=before, out=out, seed=seed, refit=True, progress=lambda _: None,
        )  # fmt: skip
    finally:
        refresh._books = books


def one_seed(args: argparse.Namespace, seed: int, folder: Path) -> tuple[dict[str, list], dict[str, list[float]]]:
    """Curves of every way, and the churn of both refits."""
    days = sorted((args.workspace / "features" / "training").glob("dt=*/part-0.parquet"))
    first = [p for p in days if p.parent.name <= f"dt={args.fit}"]
    history = [p for p in days if p.parent.name <= f"dt={args.refit}"]
    (folder / "fit").mkdir()
    items = args.workspace / "lake" / "items" / f"dt={args.refit}" / "part-0.parquet"
    refresh.refresh_tokenizer(
        items=items, training_sets=first, previous=None, out=folder / "fit", seed=seed, progress=lambda _: None
    )
    tok = Tokenizer.load(folder / "fit")
    torch.manual_seed(seed)
    model = reduced(tok, first[-1])
    data = TrainingSet(first[-args.days :], tok.catalogue, model.config)
    train(model, data, np.flatnonzero(data.targets.lengths > 0), args.steps, 1.0, seed)
    (folder / "model").mkdir()
    save_model(model, folder / "model")
    print("pre-trained", flush=True)
    ways: dict[str, tuple[Tokenizer, OneRec]] = {"no refit: the codes stay": (tok, load_model(folder / "model", tok))}
    churn = {}
    for name, warm in (("warm", True), ("cold", False)):
        churn[name] = refitted(args, history, folder / "fit", folder / name, seed + 100, warm)["churn"]
    new, cold = Tokenizer.load(folder / "warm"), Tokenizer.load(folder / "cold")
    mixed = shuffled(new, seed)
    ways["refit from the old centroids, labels matched (what the refresh does)"] = (
        new,
        load_model(folder / "model", new),
    )
    ways["refit from anew, labels matched"] = cold, load_model(folder / "model", cold)
    ways["refit, labels not matched, old code embeddings"] = mixed, taken_over(model, mixed, False, first[-1])
    ways["refit, labels not matched, new code embeddings"] = mixed, taken_over(model, mixed, True, first[-1])
    curves = {}
    for name, (tokens, begun) in ways.items():
        data = TrainingSet([history[-1]], tokens.catalogue, begun.config)
        rows = np.random.default_rng(0).permutation(np.flatnonzero(data.targets.lengths > 0))
        rate = PretrainConfig().lr_daily_scale
        curves[name] = train(
            begun, data, np.sort(rows[HELD_ROWS:]), args.more, rate, seed, np.sort(rows[:HELD_ROWS]), args.every
        )
        print(seed, name, [round(v, 3) for _, v in curves[name]], flush=True)
    return curves, churn


def table(mean: dict[str, np.ndarray], steps: list[int]) -> str:
    """A row a way: after how many steps it is where not matching ends, and where it was without a refit; the curve."""
    frozen = mean["no refit: the codes stay"]
    goals = min(v[-1] for name, v in mean.items() if "not matched" in name), frozen[0] * (1 + NEAR)
    text = "| way | steps to where the better way without matching ends | steps to recover |"
    text += f" {' | '.join(f'loss at {s}' for s in steps)} |\n|---|---|---|{'---|' * len(steps)}\n"
    for name, values in mean.items():
        reached = [np.flatnonzero(values <= goal) for goal in goals]
        after = [str(steps[r[0]]) if len(r) else f"more than {steps[-1]}" for r in reached]
        text += f"| {name} | {' | '.join(after)} | {' | '.join(f'{v:.3f}' for v in values)} |\n"
    return text


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, required=True, help="folder of a source, as var/kuairand-pure")
    p.add_argument("--fit", required=True, help="day of the first fit")
    p.add_argument("--refit", required=True, help="day of the refit")
    p.add_argument("--days", type=int, default=4, help="days that the model is pre-trained on")
    p.add_argument("--steps", type=int, default=400, help="steps of pre-training")
    p.add_argument("--more", type=int, default=120, help="steps after the refit")
    p.add_argument("--every", type=int, default=20)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    begun, every, churns = time.monotonic(), [], []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            curves, churn = one_seed(args, seed, Path(folder))
        every.append(curves)
        churns.append(churn)
    steps = [s for s, _ in next(iter(every[0].values()))]
    mean = {name: np.mean([[v for _, v in c[name]] for c in every], 0) for name in every[0]}
    command = (
        f"python -m benchmarks.tokenizer.refit --workspace var/kuairand-pure --fit {args.fit} --refit {args.refit}"
    )
    text = heading("Next-token loss after a refit", f"{command} --out benchmarks/tokenizer/refit.md")
    text += (
        f"Seeds {args.seeds}, means. Pre-trained {args.steps} steps of {BATCH} rows on {args.days} days up to"
        f" {args.fit}; refit on {args.refit}, whose rows then train at {PretrainConfig().lr_daily_scale} of the rate."
        f" Loss in nats an item, of {HELD_ROWS} rows of that day that are not trained on. Recovered: within {NEAR:.0%}"
        " of the loss before any step without a refit. Losses of different codes of one size compare only roughly.\n\n"
    )
    text += table(mean, steps)
    for name in ("warm", "cold"):
        share = np.mean([c[name] for c in churns], 0)
        text += f"\nChurn of the refit {'from the old centroids' if name == 'warm' else 'from anew'}, matched:"
        text += f" first code {share[0]:.1%}, two codes {share[1]:.1%}, whole ID {share[2]:.1%}.\n"
    text += f"\n{time.monotonic() - begun:.0f} s.\n"
    print(text)
    if args.out:
        args.out.write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps(every) + "\n")


if __name__ == "__main__":
    main()
