"""What the quality benchmarks share: train a variant on a prepared folder, and measure it on the day after.

Recall follows the evaluation step's protocol (unseen positives, seen items excluded, exact items, mean over users). The
held-out NTP loss is the mean over all targets of those rows, summed over levels.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.alignment import harness
from models.onerec.config import OneRecConfig, onerec_laptop
from models.onerec.features import POSITIVE_MASK
from models.onerec.model import OneRec
from models.onerec.ranking import rank_unseen
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import INPUTS, TrainingSet, keep_pathways
from models.training.losses import ntp_loss
from models.training.pretrain import PretrainConfig, pretrain

CHUNK, RECALL, BEAM = 256, 50, 128


def arguments(description: str) -> argparse.ArgumentParser:
    """The alignment harness's, whose workers and table these benchmarks use; `--steps` is at least so many."""
    return harness.arguments(
        description,
        data="--data",
        made_by="benchmarks.training.prepare",
        steps=480,
        users=2000,
        out=Path(__file__).resolve().parent,
    )


def trained(
    args: argparse.Namespace, seed: int, config: dict[str, Any] | None = None, sizes: dict[str, Any] | None = None
) -> tuple[OneRec, Tokenizer, dict[str, Any]]:
    """A model trained on the folder with changed knobs and sizes, its tokenizer, and pre-training's metrics."""

    def build(**shape: int) -> OneRecConfig:
        return dataclasses.replace(onerec_laptop(**shape), **(sizes or {}))

    with tempfile.TemporaryDirectory() as folder:
        metrics = pretrain(
            training_sets=sorted((args.prepared / "training").glob("*.parquet")),
            tokenizer=args.prepared / "tokenizer",
            previous=None,
            out=Path(folder),
            seed=seed,
            progress=lambda line: None,
            config=dataclasses.replace(PretrainConfig(min_steps=args.steps), **(config or {})),
            device=args.device,
            build=build,
        )
        tok = Tokenizer.load(args.prepared / "tokenizer")
        return load_model(Path(folder), tok).to(args.device).eval(), tok, metrics


@torch.no_grad()
def measured(
    args: argparse.Namespace, model: OneRec, tok: Tokenizer, inputs: tuple[str, ...] = INPUTS, recall: bool = True
) -> dict[str, float]:
    """`held_out_loss`, and recall@50 unless told otherwise, over `users` of the evaluation rows."""
    data = TrainingSet([args.prepared / "evaluation.parquet"], tok.catalogue, model.config)
    wanted = [_unseen_positives(data, row) for row in range(len(data))]
    rows = np.flatnonzero([len(w) > 0 for w in wanted])
    rows = np.random.default_rng(0).permutation(rows)[: args.users]
    trie, loss, targets, found = tok.trie.to(args.device), 0.0, 0, []
    for part in (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)):
        batch = {k: v.to(args.device) for k, v in keep_pathways(data.batch(part, 8), inputs).items()}
        weight = batch["target_mask"].float()
        z, mask = model.encode(batch)
        count = int(weight.sum())
        loss, targets = loss + ntp_loss(model, batch["targets"], weight, z, mask)[0].item() * count, targets + count
        if recall:
            seen = [tok.catalogue.index(data.seen.row(i)) for i in part]
            context = {k: v for k, v in batch.items() if not k.startswith("target")}
            for row, (item, _, _) in zip(part, rank_unseen(model, context, trie, seen, RECALL, BEAM)):
                found.append(np.isin(wanted[row], tok.catalogue.item_ids[item]).mean())
    return {"held_out_loss": loss / max(targets, 1)} | ({"recall": float(np.mean(found))} if recall else {})


def _unseen_positives(data: TrainingSet, row: int) -> np.ndarray:
    positive = (data.shown.row(row)[:, 1] & POSITIVE_MASK) > 0
    return np.setdiff1d(data.shown_item_id.row(row)[positive], data.seen.row(row))


def last(metrics: dict[str, Any], key: str, share: float = 0.2) -> float:
    """Mean of a curve's number over the last part of training."""
    curve = metrics["loss"]
    return float(np.mean([point[key] for point in curve[-max(1, round(share * len(curve))) :]]))


Column, Benchmark, main = harness.Column, harness.Benchmark, harness.main
