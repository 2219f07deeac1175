"""Search of the weights w^xtr by Pantheon's rule (arXiv 2505.13894), so that one score costs no objective its AUC.

    python -m models.reward.weights --training-sets var/<source>/features/training --tokenizer <dir> --out weights.json

Every objective has a single-objective model as reference. Weights start equal at 1/N. A trial trains one P-Score;
while an objective's AUC lies below its reference by more than the 95 % interval of the difference (paired, over users),
the objective with the largest gap gains 0.1/N and the next trial begins. The base is the best trial so far: a trial
replaces it when fewer objectives fall, or as many with a smaller largest gap. Validation users decide; test users are
never looked at. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from models.onerec.features import LABELS
from models.reward.measure import Said, predict
from models.reward.quality import Estimate, auc_gap
from models.reward.train import (
    CALIBRATION,
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

Gaps = Mapping[str, Estimate]  # AUC of the P-Score minus that of the objective's own model


@dataclasses.dataclass(frozen=True)
class Trial:
    """Weights that were tried, and what came out."""

    weights: dict[str, float]
    gaps: Gaps

    @property
    def fallen(self) -> list[str]:
        """Objectives whose loss of AUC is beyond its interval, the largest loss first."""
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
        device: str = "cpu",
        progress: Callable[[str], None] = print,
    ) -> None:
        self.data, self.tok, self.items, self.seed, self.epochs, self.device = data, tok, items, seed, epochs, device
        rows = rows_with_labels(data)
        fold = fold_of(data.user_id[rows])
        self.train = rows[~np.isin(fold, [*TEST, *CALIBRATION, *VALIDATION])]
        self.validation = rows[np.isin(fold, VALIDATION)]
        self.reference: dict[str, np.ndarray] = {}
        for i, name in enumerate(LABELS):
            said = self.trained(objectives=(name,))
            if len(said.y) and 0 < said.y[said.known[:, i], i].sum() < said.known[:, i].sum():
                self.reference[name] = said.towers[:, i]
            progress(f"reference {name}" + ("" if name in self.reference else ": one class only, left out"))

    def trained(self, **how) -> Said:
        """What a model trained with `weights` or `objectives` says of the validation users."""
        torch.manual_seed(self.seed)
        model = new_model(self.data, self.tok).to(self.device)
        set_categories(model, self.data, self.tok, self.items)
        fit(model, self.data, self.train, seed=self.seed, epochs=self.epochs, progress=lambda _: None, **how)
        return predict(model, self.data, self.validation)

    def __call__(self, weights: dict[str, float]) -> Gaps:
        said, gaps = self.trained(weights=weights), {}
        for i, name in enumerate(LABELS):
            has = said.known[:, i]
            if name in self.reference:
                gap = auc_gap(said.score[has], self.reference[name][has], said.y[has, i], said.user[has])
                assert gap is not None  # both classes are there, or the objective would have no reference
                gaps[name] = gap
        return gaps


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m models.reward.weights", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--training-sets", type=Path, required=True, help="folder of dt=<day>/part-0.parquet")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--items", type=Path, help="items table of the day (categories of the hard search)")
    parser.add_argument("--days", type=int, default=14, help="newest days to train on (14)")
    parser.add_argument("--until", default="9999", help="last day, YYYY-MM-DD")
    parser.add_argument("--budget", type=int, default=12, help="trials (12)")
    parser.add_argument("--step", type=float, default=0.1, help="raise a trial, times 1/N (0.1)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(argv)
    sets = sorted(p for p in a.training_sets.glob("dt=*/part-0.parquet") if p.parent.name <= f"dt={a.until}")[-a.days :]
    if not sets:
        raise SystemExit(f"no dt=<day>/part-0.parquet up to {a.until} in {a.training_sets}; give the training folder")
    tok = Tokenizer.load(a.tokenizer)
    measure = SourceTrials(labelled(sets, tok), tok, a.items, seed=a.seed, epochs=a.epochs, device=a.device)
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
