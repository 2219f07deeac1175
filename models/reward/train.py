"""The daily reward step: train P-Score on impressions with known labels, report an AUC an objective on held-out users.

On the first day it learns from all days, later from the day before's state and this day's rows.
Writes reward.safetensors, config.json, metrics.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from models.onerec.config import onerec_laptop
from models.onerec.features import LABELS
from models.reward.pscore import PScore, PScoreConfig, p_score_loss, targets_of
from models.training.checkpoint import Tokenizer
from models.training.data import TrainingSet
from models.training.pretrain import static_features

BATCH, MAX_IMPRESSIONS, EPOCHS, LEARNING_RATE = 128, 12, 2, 3e-3
HELD_OUT_SHARE = 0.1  # of users, chosen by hash: their impressions are never trained on


def train_reward(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    previous: Path | None,
    out: Path,
    seed: int,
    progress: Callable[[str], None] = print,
) -> dict:
    """Train the reward model; returns {objectives, p_score_auc, loss, rows} for the report."""
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    data = _labelled(training_sets, tok)
    if previous is None:
        config = PScoreConfig(
            codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=data.static.shape[1]
        )
        model = PScore(config, torch.from_numpy(tok.sid_NL))
    else:
        model = PScore.load(previous, tok)
    rows = _rows_with_play(data)
    held = (data.user_id[rows].astype(np.uint64) * np.uint64(2654435761) >> np.uint64(7)) % np.uint64(
        100
    ) < 100 * HELD_OUT_SHARE
    train_rows, test_rows = rows[~held], rows[held]
    if not len(train_rows):
        raise ValueError(
            "no impression with known labels outside the held-out users: P-Score has nothing to learn from"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    batches = [b for e in range(EPOCHS if previous is None else 1) for b in data.batches(train_rows, BATCH, seed + e)]
    curve, recent, said = [], [], time.monotonic()
    for step, batch_rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - 0.9 * step / len(batches))
        batch = data.context(batch_rows)
        candidate, y, known = impressions(data, batch_rows)
        objectives, fused = model(batch, candidate)
        loss = p_score_loss(objectives, fused, y, known)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if len(recent) == max(1, len(batches) // 50) or step == len(batches) - 1:
            curve.append({"step": step + 1, "loss": float(np.mean(recent))})
            recent = []
        if time.monotonic() - said > 5:
            said = time.monotonic()
            progress(f"step {step + 1}/{len(batches)}  loss {curve[-1]['loss'] if curve else loss.item():.3f}")
    model.save(out)
    metrics = {"loss": curve, "rows": len(train_rows), **_aucs(model, data, test_rows)}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def impressions(data: TrainingSet, rows: np.ndarray):
    """The rows' newest impressions: candidates [B, M], targets and availability [B, M, O] (0 where padding)."""
    shown, mask = data.shown.right_aligned(rows, MAX_IMPRESSIONS)
    y, known = targets_of(torch.from_numpy(shown[..., 1]), torch.from_numpy(shown[..., 2]))
    return torch.from_numpy(shown[..., 0]), y, known * torch.from_numpy(mask)[..., None]


def _labelled(training_sets: list[Path], tok: Tokenizer) -> TrainingSet:
    config = onerec_laptop(
        codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static_features(training_sets[0])
    )
    return TrainingSet(training_sets, tok.catalogue, config)


def _rows_with_play(data: TrainingSet) -> np.ndarray:
    """Rows with every label known (timed logs); where a source never logs them all, every row with any label known."""
    rows = np.flatnonzero(data.shown.lengths)
    mask, starts = data.shown.values[:, 2], data.shown.offsets[rows]
    known = np.bitwise_and.reduceat(mask, starts)
    return rows[known == known.max()] if known.any() else rows[np.bitwise_or.reduceat(mask, starts) > 0]


@torch.no_grad()
def _aucs(model: PScore, data: TrainingSet, rows: np.ndarray) -> dict:
    """AUC of each tower and of the one score for each label, on held-out users. None where a class is absent."""
    model.eval()
    logits, fused, ys, knowns = [], [], [], []
    for chunk in np.array_split(rows, max(1, len(rows) // 1024)):
        candidate, y, known = impressions(data, chunk)
        o, f = model(data.context(chunk), candidate)
        keep = known.any(-1)
        logits.append(o[keep])
        fused.append(f[keep])
        ys.append(y[keep])
        knowns.append(known[keep] > 0)
    o, f, y, known = (torch.cat(t).numpy() for t in (logits, fused, ys, knowns))
    objectives, p_score = {}, {}
    for i, name in enumerate(LABELS):
        has = known[:, i]
        positives = int(y[has, i].sum()) if name != "hate" else int(len(y[has]) - y[has, i].sum())
        objectives[name] = {"auc": auc(o[has, i], y[has, i]), "positives": positives, "rows": int(has.sum())}
        p_score[name] = auc(f[has], y[has, i])
    return {"objectives": objectives, "p_score_auc": p_score}


def auc(score: np.ndarray, y: np.ndarray) -> float | None:
    """Area under the ROC curve by ranks (ties shared); None when only one class is present."""
    positives = int(y.sum())
    if positives in (0, len(y)):
        return None
    ranks = rankdata(score)
    return float((ranks[y > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(y) - positives)))
