"""What a trained P-Score says of held-out impressions, and its quality an objective: AUC, GAUC, calibration.

    said = predict(model, data, rows)
    metrics = measure(said, seed)     # JSON-able: objectives (own towers), p_score, hand_sum, p_score_auc

`hand_sum` is what P-Score replaces: the towers' probabilities added with weights that an engineer chose by hand.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from models.onerec.features import LABELS
from models.reward.losses import targets_of
from models.reward.pscore import PScore
from models.reward.quality import Estimate, auc, calibration, gauc
from models.training.data import TrainingSet

MAX_IMPRESSIONS, CHUNK = 12, 1024
# By hand: a rare, deliberate act is worth several clicks, and not being hated is worth most.
HAND_WEIGHTS = {
    "click": 1.0,
    "long_view": 1.0,
    "like": 4.0,
    "follow": 8.0,
    "comment": 6.0,
    "forward": 8.0,
    "hate": 10.0,
    "profile_enter": 3.0,
}


@dataclasses.dataclass(frozen=True)
class Said:
    """Held-out impressions [n]: towers' logits [n, O], the score's logit, targets and availability [n, O], users."""

    towers: np.ndarray
    score: np.ndarray
    y: np.ndarray
    known: np.ndarray
    user: np.ndarray

    @property
    def hand_sum(self) -> np.ndarray:
        """Hand-weighted sum of the towers' probabilities (the hate tower's is that of not being hated)."""
        return _sigmoid(self.towers) @ np.array([HAND_WEIGHTS[name] for name in LABELS])


def impressions(data: TrainingSet, rows: np.ndarray):
    """The rows' newest impressions: candidates [B, M], targets and availability [B, M, O] (0 where padding)."""
    shown, mask = data.shown.right_aligned(rows, MAX_IMPRESSIONS)
    y, known = targets_of(torch.from_numpy(shown[..., 1]), torch.from_numpy(shown[..., 2]))
    return torch.from_numpy(shown[..., 0]), y, known * torch.from_numpy(mask)[..., None]


@torch.no_grad()
def predict(model: PScore, data: TrainingSet, rows: np.ndarray) -> Said:
    """The model's logits for the impressions of `rows` with any label known."""
    training, device = model.training, model.sid_NL.device
    model.eval()
    parts: list[tuple[np.ndarray, ...]] = []
    for chunk in np.array_split(rows, max(1, -(-len(rows) // CHUNK))):
        candidate, y, known = impressions(data, chunk)
        context = {k: v.to(device) for k, v in data.context(chunk).items()}
        towers, score = (t.cpu().double() for t in model(context, candidate.to(device)))
        keep = known.any(-1)
        user = torch.from_numpy(data.user_id[chunk])[:, None].expand(keep.shape)
        parts.append(tuple(t[keep].numpy() for t in (towers, score, y, known > 0, user)))
    model.train(training)
    return Said(*(np.concatenate(columns) for columns in zip(*parts)))


def calibrate(model: PScore, data: TrainingSet, rows: np.ndarray) -> list[float]:
    """Shift each tower's logit so that it predicts as many positives as `rows` (users not trained on) hold.

    Weighted classes are undone exactly by the loss, but what a tower has memorised of rare positives makes it too sure
    on users it has never seen. Rankings stay as they are. Returns the shifts.
    """
    said = predict(model, data, rows)
    shifts = [intercept(said.towers[has, i], said.y[has, i]) for i, has in enumerate(said.known.T)]
    with torch.no_grad():
        model.tower_bias_O.add_(model.tower_bias_O.new_tensor(shifts))
    return shifts


def intercept(logit: np.ndarray, y: np.ndarray) -> float:
    """The most likely shift of the logits under a standard normal prior, which keeps it near 0 when labels are few."""
    shift = 0.0
    for _ in range(50):  # Newton, at most 1 a step; the objective is concave
        p = _sigmoid(logit + shift)
        shift += float(np.clip((np.sum(y - p) - shift) / (np.sum(p * (1 - p)) + 1), -1, 1))
    return shift


def measure(said: Said, seed: int) -> dict:
    """Quality of towers, P-Score and hand-weighted sum for each objective; None where a class is absent.

    `positives` of hate counts the hated. `predicted_over_observed` and `ece` are of the tower's probability of the
    label itself, so of being hated for hate.
    """
    towers, p_score, hand_sum = {}, {}, {}
    for i, name in enumerate(LABELS):
        has = said.known[:, i]
        y, user = said.y[has, i], said.user[has]
        own, probability, happened = said.towers[has, i], _sigmoid(said.towers[has, i]), y
        if name == "hate":
            probability, happened = 1 - probability, 1 - y
        ece, ratio = calibration(probability, happened) if len(y) else (None, None)
        towers[name] = {
            **ranking(own, y, user, seed),
            "ece": ece,
            "predicted_over_observed": ratio,
            "positives": int(happened.sum()),
            "rows": len(y),
        }
        p_score[name] = ranking(said.score[has], y, user, seed)
        hand_sum[name] = ranking(said.hand_sum[has], y, user, seed)
    return {
        "objectives": towers,
        "p_score": p_score,
        "hand_sum": hand_sum,
        "p_score_auc": {name: p_score[name]["auc"] for name in LABELS},
    }


def ranking(score: np.ndarray, y: np.ndarray, user: np.ndarray, seed: int) -> dict:
    """AUC and GAUC of a score for one label, with their 95 % intervals over users."""
    return {**_flat("auc", auc(score, y, user)), **_flat("gauc", gauc(score, y, user, seed))}


def _flat(name: str, estimate: Estimate | None) -> dict:
    if estimate is None:
        return {name: None, f"{name}_interval": None}
    return {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))
