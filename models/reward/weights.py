"""Search of the weights w^xtr by Pantheon's rule (arXiv 2505.13894), so that one score costs no objective its AUC.

    python -m models.reward.weights --training-sets var/<source>/features/training --tokenizer <dir> --out weights.json

Every objective has a single-objective model as reference. Weights start equal at 1/N. While an objective's GAUC lies
below its reference by more than the 95 % interval of the difference (paired, over users), the one with the largest gap
gains 0.1/N and the next trial begins. The base is the best trial so far: a trial replaces it when fewer objectives
fall, or as many with a smaller largest gap. GAUC as in Pantheon, because alignment and serving only ever compare the
scores of one user; `--by auc` compares across users too. A trial trains the fusion tower alone, over one set of trained
towers: they get no gradient from it anyway, and hundreds of small raises become affordable. Validation users decide;
test users are never looked at. An objective with fewer than FEWEST rows of its rarer class among them keeps its weight:
a handful of hated videos would otherwise steer everything. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.onerec.features import LABELS
from models.reward.losses import SCORE_BALANCE, ClassWeights, score_loss
from models.reward.measure import CHUNK, impressions, predict
from models.reward.pscore import PScore
from models.reward.quality import Estimate, auc_gap, gauc_gap
from models.reward.train import (
    CALIBRATION,
    LEARNING_RATE,
    TEST,
    VALIDATION,
    fit,
    fold_of,
    labelled,
    new_model,
    rows_with_labels,
    set_categories,
)
from models.training.checkpoint import Tokenizer
from models.training.data import TrainingSet

HEAD_BATCH = 512
FEWEST = 30  # rows of the rarer class under which an AUC is luck
Gaps = Mapping[str, Estimate]  # GAUC (or AUC) of the P-Score minus that of the objective's own model


@dataclasses.dataclass(frozen=True)
class Trial:
    """Weights that were tried, and what came out."""

    weights: dict[str, float]
    gaps: Gaps

    @property
    def fallen(self) -> list[str]:
        """Objectives whose loss is beyond its interval, the largest loss first."""
        return sorted((n for n, g in self.gaps.items() if g.high < 0), key=lambda n: self.gaps[n].value)

    @property
    def order(self) -> tuple[int, float]:
        """Smaller is better: how many fall, then the largest gap."""
        return len(self.fallen), -min((g.value for g in self.gaps.values()), default=0.0)


def search_weights(
    measure: Callable[[dict[str, float]], Gaps],
    names: tuple[str, ...],
    *,
    budget: int,
    step: float = 0.1,
    start: Mapping[str, float] | None = None,
    progress: Callable[[str], None] = print,
) -> tuple[Trial, list[Trial]]:
    """The base when the rule stops, and every trial. `step`: the raise is step / N (Pantheon's 0.1).

    Raises ValueError for a weight that is not positive and a budget without a trial.
    """
    weights = {n: 1 / len(names) for n in names} if start is None else {n: float(start[n]) for n in names}
    if min(weights.values()) <= 0 or step <= 0:
        raise ValueError(f"weights {weights} and step {step}: all must be positive, only their ratios count")
    if budget < 1:
        raise ValueError(f"budget is {budget}; the search needs at least one trial")
    trials: list[Trial] = []
    while True:
        trial = Trial(dict(weights), measure(dict(weights)))
        trials.append(trial)
        base = min(trials, key=lambda t: t.order)
        progress(f"trial {len(trials)}/{budget}: {len(trial.fallen)} fall {trial.fallen}, best {len(base.fallen)}")
        if not trial.fallen or len(trials) == budget:
            return base, trials
        weights[trial.fallen[0]] += step / len(names)


class SourceTrials:
    """`measure` on a source: trains on users outside test and validation, measures on the validation users."""

    def __init__(
        self,
        data: TrainingSet,
        tok: Tokenizer,
        items: Path | None,
        *,
        seed: int,
        epochs: int,
        fewest: int = FEWEST,
        by: str = "gauc",
        device: str = "cpu",
        progress: Callable[[str], None] = print,
    ) -> None:
        rows = rows_with_labels(data)
        fold = fold_of(data.user_id[rows])
        self.train = rows[~np.isin(fold, [*TEST, *CALIBRATION, *VALIDATION])]
        self.validation = rows[np.isin(fold, VALIDATION)]
        self.seed, self.epochs, self.by = seed, epochs, by
        _, y, known = impressions(data, self.validation)
        positives = (y * known).sum((0, 1))
        rarer = torch.minimum(positives, known.sum((0, 1)) - positives).int().tolist()
        judged = [name for name, rows_of in zip(LABELS, rarer) if rows_of >= max(fewest, 1)]
        progress(f"rows of the rarer class {dict(zip(LABELS, rarer))}; judged: {', '.join(judged) or 'none'}")
        self.reference: dict[str, np.ndarray] = {}
        for name in (*judged, ""):
            torch.manual_seed(seed)
            model = new_model(data, tok).to(device)
            set_categories(model, data, tok, items)
            chosen = (name,) if name else LABELS
            fit(model, data, self.train, seed=seed, epochs=epochs, objectives=chosen, progress=lambda _: None)
            if name:
                self.reference[name] = predict(model, data, self.validation).towers[:, LABELS.index(name)]
                progress(f"reference {name}")
        self.head = model.fusion.cpu()
        self.x, self.y, self.known, _ = frozen(model, data, self.train)
        self.x_val, self.y_val, self.known_val, self.user_val = frozen(model, data, self.validation)
        self.classes = ClassWeights.of(self.y, self.known, SCORE_BALANCE)

    def __call__(self, weights: dict[str, float]) -> Gaps:
        score, gaps = self._score(weights), {}
        for name, reference in self.reference.items():
            i = LABELS.index(name)
            has = self.known_val[:, i].numpy() > 0
            own, other, y, user = score[has], reference[has], self.y_val[has, i].numpy(), self.user_val[has]
            gap = gauc_gap(own, other, y, user, self.seed) if self.by == "gauc" else auc_gap(own, other, y, user)
            if gap is not None:
                gaps[name] = gap
        return gaps

    def _score(self, weights: dict[str, float]) -> np.ndarray:
        """Validation logits of a fusion tower trained from its first weights with these objective weights."""
        torch.manual_seed(self.seed)
        head = copy.deepcopy(self.head)
        for layer in head:
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
        optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        batches = [b for _ in range(self.epochs) for b in torch.randperm(len(self.x)).split(HEAD_BATCH)]
        for step, b in enumerate(batches):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - 0.9 * step / len(batches))
            loss = score_loss(head(self.x[b])[:, 0], self.y[b], self.known[b], self.classes, weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return head(self.x_val)[:, 0].double().numpy()


@torch.no_grad()
def frozen(model: PScore, data: TrainingSet, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """What the fusion tower reads of each impression [n, X], its targets and availability [n, O], and its user."""
    parts = []
    for chunk in np.array_split(rows, max(1, -(-len(rows) // CHUNK))):
        candidate, y, known = impressions(data, chunk)
        context = {k: v.to(model.sid_NL.device) for k, v in data.context(chunk).items()}
        hidden, x, _ = model.represent(context, candidate.to(model.sid_NL.device))
        keep = known.any(-1)
        user = torch.from_numpy(data.user_id[chunk])[:, None].expand(keep.shape)
        parts.append((torch.cat([hidden, x], -1).cpu()[keep], y[keep], known[keep], user[keep]))
    x, y, known, user = (torch.cat(columns) for columns in zip(*parts))
    return x, y, known, user.numpy()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.reward.weights", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--training-sets", type=Path, required=True, help="folder of dt=<day>/part-0.parquet")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--items", type=Path, help="items table of the day (categories of the hard search)")
    parser.add_argument("--days", type=int, default=14, help="newest days to train on (14)")
    parser.add_argument("--until", default="9999", help="last day, YYYY-MM-DD")
    parser.add_argument("--budget", type=int, default=200, help="trials (200)")
    parser.add_argument("--step", type=float, default=0.1, help="raise a trial, times 1/N (0.1)")
    parser.add_argument("--by", choices=("gauc", "auc"), default="gauc")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--fewest", type=int, default=FEWEST, help=f"rows of the rarer class to be judged ({FEWEST})")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(argv)
    sets = sorted(p for p in a.training_sets.glob("dt=*/part-0.parquet") if p.parent.name <= f"dt={a.until}")[-a.days :]
    if not sets:
        raise SystemExit(f"no dt=<day>/part-0.parquet up to {a.until} in {a.training_sets}; give the training folder")
    tok = Tokenizer.load(a.tokenizer)
    how = {"seed": a.seed, "epochs": a.epochs, "fewest": a.fewest, "by": a.by, "device": a.device}
    measure = SourceTrials(labelled(sets, tok), tok, a.items, **how)
    base, trials = search_weights(measure, LABELS, budget=a.budget, step=a.step)
    found = {
        "weights": base.weights,
        "fallen": base.fallen,
        "gaps": {name: dataclasses.asdict(gap) for name, gap in base.gaps.items()},
        "trials": [{"weights": t.weights, "gaps": {n: g.value for n, g in t.gaps.items()}} for t in trials],
        "seed": a.seed,
    }
    a.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: found[k] for k in ("weights", "fallen")}, indent=1))


if __name__ == "__main__":
    main()
