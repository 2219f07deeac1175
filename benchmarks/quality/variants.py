"""The rows that are trained here, by name, and the function that runs one of them.

    python -m benchmarks.quality.variants --prepared build/quality/beauty --variant onerec --seed 1 --device cuda

One configuration serves every set: sizes come from the data (`codebook_size_for`), everything else stands here. Prints
the validation numbers; the test numbers only with --test, which the tables alone use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.data import Sequences
from benchmarks.quality.onerec import OneRecSequences
from benchmarks.quality.protocol import METRICS, means, rank_next
from benchmarks.quality.sasrec import SASRecConfig, train_sasrec
from benchmarks.quality.train import CO_WEIGHTS, GRID, Training, Weights, rank_onerec, train_onerec
from models.evaluation.metrics import bootstrap_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A row: SASRec when `sasrec` is given, else OneRec. `ids` names the prepared semantic IDs, `weight` the joint
    score's weights of the item-level head (inf: without the beam) and of co-occurrence."""

    title: str
    sasrec: SASRecConfig | None = None
    options: OneRecSequences = dataclasses.field(default_factory=OneRecSequences)
    training: Training = dataclasses.field(default_factory=Training)
    ids: str = "fused"
    weight: Weights = (1.0, 0.0)


ONEREC = Variant(title="OneRec", weight=(2.0, 4.0))
FIRST = Variant(title="first configuration", options=OneRecSequences(table_dropout=0.2), weight=(1.0, 0.0))
TIGER = Variant(
    title="TIGER-style (RQ-VAE IDs of the text, our decoder)",
    options=OneRecSequences(content=False, own=False, item_loss=0.0, table_dropout=0.2),
    ids="rqvae",
    weight=(0.0, 0.0),
)


def _with(title: str, *, ids: str | None = None, weight: Weights | None = None, **changed) -> Variant:
    """The first configuration with some levers moved; each keyword belongs to the options or to the training."""
    own = {f.name for f in dataclasses.fields(OneRecSequences)}
    return dataclasses.replace(
        FIRST,
        title=title,
        options=dataclasses.replace(FIRST.options, **{k: v for k, v in changed.items() if k in own}),
        training=dataclasses.replace(FIRST.training, **{k: v for k, v in changed.items() if k not in own}),
        ids=ids or FIRST.ids,
        weight=FIRST.weight if weight is None else weight,
    )


VARIANTS: dict[str, Variant] = {
    "sasrec": Variant(title="SASRec, sampled softmax (re-run)", sasrec=SASRecConfig()),
    "sasrec_mixed": Variant(title="SASRec, sampled softmax, random batches", sasrec=SASRecConfig(mixed=True)),
    "sasrec_known": Variant(
        title="SASRec, sampled softmax, trained on the validation item too, 10 epochs",
        sasrec=SASRecConfig(mixed=True, with_validation=True, epochs=10),
    ),
    "sasrec_64": Variant(title="SASRec, sampled softmax, d 64", sasrec=SASRecConfig(d_model=64)),
    "sasrec_full": Variant(title="SASRec, full softmax", sasrec=SASRecConfig(negatives=0)),
    "tiger": TIGER,
    "onerec": ONEREC,
    # the search: one lever each, moved from the first configuration
    "first": FIRST,
    "no_item_head": _with("without the item-level head", item_loss=0.0, weight=(0.0, 0.0)),
    "item_head_only": _with("the item-level head alone, no decoder", token_loss=0.0, weight=(math.inf, 0.0)),
    "text_ids": _with("IDs from the text alone", ids="text"),
    "no_content": _with("no content vector in the events", content=False),
    "no_own": _with("no embedding an item", own=False),
    "codes_only": _with("events from codes alone", content=False, own=False),
    "windows": _with("sliding windows, bidirectional", causal=False, epochs=15),
    "sampled": _with("item head with 256 sampled negatives", negatives=256),
    "smooth": _with("siblings smoothed by .1", smoothing=0.1),
    "table_dropout_0": _with("no dropout of the item table", table_dropout=0.0),
    "table_dropout_4": _with("dropout .4 of the item table", table_dropout=0.4),
    "legal": _with("codes' probabilities over legal siblings alone", legal=True),
    "sampled_1024": _with("item head with 1,024 sampled negatives", negatives=1024),
    "one_head": _with("one attention head", heads=1),
    "decay": _with("weight decay .1", weight_decay=0.1),
    "token_half": _with("token loss x .5", token_loss=0.5),
    "token_double": _with("token loss x 2", token_loss=2.0),
    "batch_128": _with("batches of 128", batch=128),
    "dropout_4": _with("dropout .4 of encoder and decoder", dropout=0.4, decoder_dropout=0.4),
    "encoder_4": _with("dropout .4 of the encoder", dropout=0.4),
    "encoder_5": _with("dropout .5 of the encoder", dropout=0.5),
    "encoder_4_table_4": _with("dropout .4 of encoder and item table", dropout=0.4, table_dropout=0.4),
    "encoder_5_wide": _with("dropout .5 of the encoder, d 512", dropout=0.5, d_model=512),
    "encoder_4_legal": _with("dropout .4 of the encoder, legal siblings alone", dropout=0.4, legal=True),
    "narrow": _with("d 128", d_model=128),
    "shallow": _with("1 + 1 layers", encoder_layers=1, decoder_layers=1),
    "deep": _with("3 + 3 layers", encoder_layers=3, decoder_layers=3),
    "longer": _with("twice as many epochs", epochs=120),
}


def run_variant(
    name: str,
    prepared: Path,
    seed: int,
    device: torch.device,
    *,
    test: bool = False,
    epochs: int | None = None,
    seconds: float = math.inf,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train one row on one prepared set; its numbers on validation, and on test if asked. Raises ValueError by name."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; choose one of {', '.join(VARIANTS)}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    variant, sequences, begun = VARIANTS[name], Sequences.load(prepared), time.monotonic()
    parts = ("validation", "test") if test else ("validation",)
    result: dict[str, Any] = {"variant": name, "set": prepared.name, "seed": seed, "device": _name(device)}
    if variant.sasrec is not None:
        config = dataclasses.replace(variant.sasrec, epochs=epochs or variant.sasrec.epochs)
        sasrec, selection = train_sasrec(
            config, sequences, seed=seed, device=device, progress=progress, seconds=seconds
        )
        model: torch.nn.Module = sasrec
        for part in parts:
            values = rank_next(sasrec.eval().scores, sequences, part, device)
            result[part] = means(values)
            result[f"{part}_interval"] = {m: list(bootstrap_interval(values[m], seed)) for m in METRICS}
    else:
        training = dataclasses.replace(
            variant.training,
            epochs=epochs or variant.training.epochs,
            seconds=min(seconds, variant.training.seconds),
            select=variant.weight,
        )
        sid, content, codebook_size = tokenizer(prepared, variant.ids, seed)
        onerec, selection = train_onerec(
            variant.options,
            training,
            sequences,
            sid,
            content,
            codebook_size,
            seed=seed,
            device=device,
            progress=progress,
        )
        model = onerec
        heads = variant.options.item_loss > 0 and variant.options.token_loss > 0
        weights = GRID if heads else tuple((variant.weight[0], co) for co in CO_WEIGHTS)
        for part in parts:
            found = rank_onerec(onerec, sequences, part, device, weights=weights)
            result[part] = means(found[variant.weight])
            result[f"{part}_interval"] = {m: list(bootstrap_interval(found[variant.weight][m], seed)) for m in METRICS}
            result[f"{part}_by_weight"] = {f"{w[0]:g} {w[1]:g}": means(values) for w, values in found.items()}
    result["parameters"] = sum(p.numel() for p in model.parameters())
    result["epochs"], result["best_epoch"] = selection.curve[-1]["epoch"] + 1, selection.best_epoch + 1
    result["seconds"], result["curve"] = round(time.monotonic() - begun, 1), selection.curve
    return result


def tokenizer(prepared: Path, ids: str, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Semantic IDs [N, 3], content vectors [N, F] and the codebook's size of a prepared set."""
    file = prepared / f"sid_{ids}_{seed}.npy"
    if not file.exists():
        raise ValueError(f"{file} is missing; prepare it: python -m benchmarks.quality.prepare --seeds {seed} ...")
    size = json.loads((prepared / "prepared.json").read_text())["codebook_size"]
    content = np.load(prepared / "content.npy", allow_pickle=False).astype(np.float32)
    return np.load(file, allow_pickle=False).astype(np.int64), content, size


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder of one set, written by prepare")
    p.add_argument("--variant", required=True, choices=sorted(VARIANTS))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--epochs", type=int, help="instead of the variant's own number")
    p.add_argument("--seconds", type=float, default=math.inf, help="end the training after so many seconds")
    p.add_argument("--test", action="store_true", help="also the test numbers: for the tables, never to choose by")
    p.add_argument("--out", type=Path, help="write the result here as JSON")
    args = p.parse_args()
    result = run_variant(
        args.variant,
        args.prepared,
        args.seed,
        torch.device(args.device),
        test=args.test,
        epochs=args.epochs,
        seconds=args.seconds,
        progress=lambda line: print(f"[{args.prepared.name} {args.variant} {args.seed}] {line.strip()}", flush=True),
    )
    text = json.dumps(result)
    if args.out:
        args.out.write_text(text + "\n")
    print({k: v for k, v in result.items() if k != "curve"}, flush=True)


if __name__ == "__main__":
    main()
