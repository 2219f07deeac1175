"""Scaling law of pre-training: a ladder of sizes on the same data, and the fit L(N) = E + A / N^alpha.

    runs = [run_one(folder, width=64, seed=1, steps=480), ...]
    law, intervals = fit(runs), bootstrap(runs, seed=0)

N counts the parameters without embedding tables, which are looked up and not computed with. L is the NTP loss on the
day after training. Dense learning rates follow 1/width, which for these models is the N^-1/2 of OneRec-V2's ladder.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from models.onerec.config import OneRecConfig, onerec_laptop
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import TrainingSet
from models.training.losses import ntp_loss
from models.training.optimizer import is_table
from models.training.pretrain import PretrainConfig, pretrain

WIDTHS = (16, 32, 48, 64, 96, 128)
REFERENCE_WIDTH = 96  # whose learning rate the default is
ALPHAS = np.geomspace(0.02, 3.0, 3000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model: N without tables, all parameters, and its held-out NTP loss."""

    width: int
    seed: int
    parameters: int
    with_tables: int
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """L(N) = E + A / N^alpha."""

    E: float
    A: float
    alpha: float

    def __call__(self, parameters: np.ndarray | float) -> np.ndarray:
        return self.E + self.A * np.asarray(parameters, float) ** -self.alpha


def sized(width: int, **shape: int) -> OneRecConfig:
    """The laptop's structure at another width, all proportions kept."""
    if width % 8 or width < 8:
        raise ValueError(f"width is {width}; choose a multiple of 8")
    return dataclasses.replace(
        onerec_laptop(**shape),
        d_model=width,
        heads=math.gcd(width // 8, 4),
        ffn_dim=2 * width,
        expert_dim=-(-4 * width // 24) * 8,
        author_dim=max(8, width // 3),
        feature_dim=max(8, width // 6),
    )


def run_one(
    *,
    training_sets: list[Path],
    evaluation_set: Path,
    tokenizer: Path,
    width: int,
    seed: int,
    steps: int,
    device: str = "cpu",
    progress: Callable[[str], None] = print,
) -> Run:
    """Train one size with one seed and measure it on the evaluation rows."""
    config = PretrainConfig(min_steps=steps, lr_dense=PretrainConfig.lr_dense * REFERENCE_WIDTH / width)
    with tempfile.TemporaryDirectory() as folder:
        pretrain(
            training_sets=training_sets,
            tokenizer=tokenizer,
            previous=None,
            out=Path(folder),
            seed=seed,
            progress=progress,
            config=config,
            device=device,
            build=lambda **shape: sized(width, **shape),
        )
        tok = Tokenizer.load(tokenizer)
        model = load_model(Path(folder), tok).to(device).eval()
    tables = sum(p.numel() for name, p in model.named_parameters() if is_table(model, name))
    total = sum(p.numel() for p in model.parameters())
    data, loss, targets = TrainingSet([evaluation_set], tok.catalogue, model.config), 0.0, 0
    rows = np.flatnonzero(data.targets.lengths > 0)
    with torch.no_grad():
        for part in (rows[i : i + 256] for i in range(0, len(rows), 256)):
            batch = {k: v.to(device) for k, v in data.batch(part, config.max_targets).items()}
            weight, count = batch["target_mask"].float(), int(batch["target_mask"].sum())
            value = ntp_loss(model, batch["targets"], weight, *model.encode(batch))[0].item()
            loss, targets = loss + value * count, targets + count
    return Run(width=width, seed=seed, parameters=total - tables, with_tables=total, loss=loss / targets)


def fit(runs: Sequence[Run]) -> Law:
    """Least squares with E >= 0 and A >= 0: for each alpha of a fine grid E and A are linear, the best alpha wins.

    Raises ValueError with fewer than three sizes: three numbers are fitted.
    """
    if (sizes := len({r.parameters for r in runs})) < 3:
        raise ValueError(f"{sizes} sizes cannot carry a fit of E, A and alpha; train at least 3")
    n, loss = np.array([r.parameters for r in runs], float), np.array([r.loss for r in runs])
    x_AR = (n / n.max()) ** -ALPHAS[:, None]  # scaled, so that the sums keep their digits
    centred = x_AR - x_AR.mean(1, keepdims=True)
    slope = np.maximum((centred * (loss - loss.mean())).sum(1) / np.maximum((centred**2).sum(1), 1e-30), 0.0)
    level = loss.mean() - slope * x_AR.mean(1)
    slope = np.where(level < 0, (x_AR * loss).sum(1) / (x_AR**2).sum(1), slope)
    level = np.maximum(level, 0.0)
    best = int(((level[:, None] + slope[:, None] * x_AR - loss) ** 2).sum(1).argmin())
    alpha = float(ALPHAS[best])
    return Law(E=float(level[best]), A=float(slope[best] * n.max() ** alpha), alpha=alpha)


def bootstrap(runs: Sequence[Run], seed: int, draws: int = 500) -> dict[str, tuple[float, float]]:
    """95 % intervals of E, A and alpha over runs drawn with replacement.

    Draws of fewer than four sizes, or of three where there are no more, are drawn again.
    """
    rng = np.random.default_rng(seed)
    laws: list[tuple] = []
    least = min(4, len({r.parameters for r in runs}))
    while len(laws) < draws:
        drawn = [runs[i] for i in rng.integers(0, len(runs), len(runs))]
        if len({r.parameters for r in drawn}) >= least:
            laws.append(dataclasses.astuple(fit(drawn)))
    low, high = np.percentile(np.array(laws), [2.5, 97.5], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(("E", "A", "alpha"), low, high)}
