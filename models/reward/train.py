"""The daily reward step: train P-Score on impressions with known labels, measure it on held-out users.

On the first day it learns from all days, later from the day before's state and this day's rows.
Writes reward.safetensors, config.json, metrics.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from models.onerec.config import onerec_laptop
from models.onerec.features import LABELS
from models.reward.losses import SCORE_BALANCE, TOWER_BALANCE, WEIGHTS, ClassWeights, p_score_loss
from models.reward.measure import calibrate, impressions, measure, predict
from models.reward.pscore import PScore, PScoreConfig
from models.training.checkpoint import Tokenizer
from models.training.data import PATHWAYS, TrainingSet, batches_in, read_ragged
from models.training.pretrain import static_features

BATCH, EPOCHS, LEARNING_RATE = 128, 4, 3e-3
# At bootstrap a small log is passed over until so many steps are taken, but not more often than that
# (docs/decisions/alignment.md).
MIN_STEPS, MAX_EPOCHS = 300, 8
# Users by hash, in hundredths. Test and calibration users are never trained on, and validation users not while weights
# are searched (weights.py).
TEST, CALIBRATION, VALIDATION = range(10), range(10, 15), range(15, 25)


def train_reward(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    previous: Path | None,
    out: Path,
    seed: int,
    items: Path | None = None,
    progress: Callable[[str], None] = print,
) -> dict:
    """Train the reward model; returns loss, rows, weights, calibration_shift and what measure.measure finds.

    `items`: the items table, whose first tag is the category of the hard search; without it, the events' tags are.
    """
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    data = labelled(training_sets, tok)
    model = new_model(data, tok) if previous is None else PScore.load(previous, tok)
    set_categories(model, data, tok, items)
    rows = rows_with_labels(data)
    fold = fold_of(data.user_id[rows])
    train_rows, test_rows = rows[~np.isin(fold, [*TEST, *CALIBRATION])], rows[np.isin(fold, TEST)]
    epochs = passes(len(train_rows)) if previous is None else 1
    curve = fit(model, data, train_rows, seed=seed, epochs=epochs, progress=progress)
    shifts = calibrate(model, data, rows[np.isin(fold, CALIBRATION)])
    model.save(out)
    metrics = {
        "loss": curve,
        "rows": len(train_rows),
        "weights": dict(WEIGHTS),
        "calibration_shift": dict(zip(LABELS, shifts)),
        **measure(predict(model, data, test_rows), seed),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def passes(rows: int) -> int:
    """How often bootstrap passes over so many rows."""
    return max(EPOCHS, min(MAX_EPOCHS, -(-MIN_STEPS // batches_in(rows, BATCH)))) if rows else EPOCHS


def new_model(data: TrainingSet, tok: Tokenizer, **choices) -> PScore:
    """An untrained model for a source; `choices` are fields of PScoreConfig."""
    sizes = {"codebook_size": tok.codebook_size, "items": len(tok.catalogue), "static_features": data.static.shape[1]}
    return PScore(PScoreConfig(**(sizes | choices)), torch.from_numpy(tok.sid_NL))


def fit(
    model: PScore,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    seed: int,
    epochs: int,
    weights: Mapping[str, float] = WEIGHTS,
    objectives: tuple[str, ...] = LABELS,
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """Train in place on `rows`, on the model's device; returns the loss curve.

    `objectives`: all, or one for a single-objective model. Raises ValueError without rows.
    """
    if not len(rows):
        raise ValueError(
            "no impression with known labels outside the held-out users: P-Score has nothing to learn from"
        )
    device = model.sid_NL.device
    _, y, known = impressions(data, rows)
    tower, one = (
        ClassWeights.of(y.flatten(0, 1), known.flatten(0, 1), balance).to(device)
        for balance in (TOWER_BALANCE, SCORE_BALANCE)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    batches = [b for e in range(epochs) for b in data.batches(rows, BATCH, seed + e)]
    curve, recent, said = [], [], time.monotonic()
    model.train()
    for step, batch_rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - 0.9 * step / len(batches))
        context = {k: v.to(device) for k, v in data.context(batch_rows).items()}
        candidate, y, known = (t.to(device) for t in impressions(data, batch_rows))
        loss = p_score_loss(model.outputs(context, candidate), y, known, tower, one, weights, objectives)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if len(recent) == max(1, len(batches) // 50) or step == len(batches) - 1:
            curve.append({"step": step + 1, "loss": float(torch.stack(recent).mean())})
            recent = []
        if time.monotonic() - said > 5:
            said = time.monotonic()
            progress(f"step {step + 1}/{len(batches)}  loss {curve[-1]['loss'] if curve else loss.item():.3f}")
    return curve


def labelled(training_sets: list[Path], tok: Tokenizer) -> TrainingSet:
    """The training sets encoded for a tokenizer."""
    config = onerec_laptop(
        codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static_features(training_sets[0])
    )
    return TrainingSet(training_sets, tok.catalogue, config)


def set_categories(model: PScore, data: TrainingSet, tok: Tokenizer, items: Path | None) -> None:
    """Fill the model's category of each item (0 = unknown); what a source does not say stays as it was."""
    category = model.item_category_N.cpu().numpy().copy()
    if items is None:
        for name in PATHWAYS:
            events = data.pathway[name].values
            known = events[events[:, 2] > 0]
            category[known[:, 0]] = known[:, 2]
    else:
        table = pq.read_table(items, columns=["item_id", "tags"])
        tags = read_ragged(table, ["tags"])
        tagged = tags.lengths > 0
        index = tok.catalogue.index(table["item_id"].to_numpy()[tagged])
        category[index] = 1 + tags.values[tags.offsets[:-1][tagged]]
    category[-1] = 0  # the unknown item has none
    model.item_category_N.copy_(torch.from_numpy(category))


def fold_of(user_id: np.ndarray) -> np.ndarray:
    """A hundredth 0..99 for each user, by hash: the same in every run and on every day."""
    return (user_id.astype(np.uint64) * np.uint64(2654435761) >> np.uint64(7)) % np.uint64(100)


def rows_with_labels(data: TrainingSet) -> np.ndarray:
    """Rows with every label known (timed logs); where a source never logs them all, every row with any label known."""
    rows = np.flatnonzero(data.shown.lengths)
    mask, starts = data.shown.values[:, 2], data.shown.offsets[rows]
    known = np.bitwise_and.reduceat(mask, starts)
    return rows[known == known.max()] if known.any() else rows[np.bitwise_or.reduceat(mask, starts) > 0]
