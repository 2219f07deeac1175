"""The one P-Score beside single-objective models and a hand-weighted sum of its towers, on users never trained on.

    python -m benchmarks.alignment.pscore --workspace var/kuairand-pure --day 2022-05-05 \\
        --out benchmarks/alignment/pscore.md

For each seed it trains one P-Score (towers, and the score with the weights of models/reward/losses.py) and one model an
objective, which sees that objective's labels only. The table holds AUC and GAUC of all four on the test users.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import multiprocessing
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import commit, hardware
from models.onerec.features import LABELS
from models.reward.measure import Said, calibrate, predict
from models.reward.quality import Estimate, auc, auc_gap, calibration, gauc
from models.reward.train import (
    CALIBRATION,
    TEST,
    fit,
    fold_of,
    labelled,
    new_model,
    rows_with_labels,
    set_categories,
)
from models.training.checkpoint import Tokenizer
from models.training.data import TrainingSet

T95 = {1: float("nan"), 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided, by number of seeds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alignment.pscore", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--workspace", type=Path, required=True, help="var/<source> of a day that has run")
    parser.add_argument("--day", required=True, help="YYYY-MM-DD: its tokenizer, and training days up to it")
    parser.add_argument("--days", type=int, default=14, help="newest days to train on (14)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], choices=range(1000), metavar="SEED")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="models trained at once, each on one core (1)")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    a = parser.parse_args(argv)
    if len(a.seeds) > len(T95):
        parser.error(f"at most {len(T95)} seeds")
    begun, measured_at = time.monotonic(), commit()  # a long run may see later commits
    jobs = [(seed, name) for seed in a.seeds for name in ("", *LABELS)]
    train = functools.partial(one_model, a.workspace, a.day, a.days, a.epochs, a.device)
    if a.workers == 1:
        said = [train(job) for job in jobs]
    else:
        with ProcessPoolExecutor(a.workers, multiprocessing.get_context("spawn")) as pool:
            said = list(pool.map(train, jobs))
    result = dict(zip(jobs, said))
    head = [
        "# P-Score beside single-objective models and a hand-weighted sum",
        "",
        f"Date {dt.date.today()}, commit `{measured_at}`, seeds {a.seeds}, {len(a.seeds)} x {1 + len(LABELS)} models, "
        f"{a.epochs} epochs over {a.days} days, {time.monotonic() - begun:.0f} s.",
        f"Hardware: {hardware(a.device)}, one thread a model, {a.workers} at once; PyTorch {torch.__version__}.",
        "",
        f"    python -m benchmarks.alignment.pscore {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "",
        "Means over seeds on test users (a tenth, by hash, never trained on), and how much the seeds spread (95 %, "
        "Student's t). Gaps are paired on the same impressions, with the 95 % interval over users, averaged over the "
        "seeds; bold: the interval excludes 0. Positives of hate: the hated.",
        "",
    ]
    a.out.write_text("\n".join([*head, *tables(result, a.seeds)]) + "\n")
    print(a.out.read_text())


@functools.cache
def source(workspace: Path, day: str, days: int) -> tuple[TrainingSet, Tokenizer, Path]:
    """Training rows, tokenizer and items table of a day (read once a process)."""
    found = sorted((workspace / "features" / "training").glob("dt=*/part-0.parquet"))
    sets = [p for p in found if p.parent.name <= f"dt={day}"][-days:]
    if not sets:
        raise SystemExit(f"no training rows up to {day} in {workspace}; run that day first (make daily)")
    tok = Tokenizer.load(workspace / "days" / day / "tokenize")
    return labelled(sets, tok), tok, workspace / "lake" / "items" / f"dt={day}" / "part-0.parquet"


def one_model(workspace: Path, day: str, days: int, epochs: int, device: str, job: tuple[int, str]) -> Said:
    """Train a P-Score (no name) or one objective's model; returns what it says of the test users."""
    torch.set_num_threads(1)
    seed, name = job
    data, tok, items = source(workspace, day, days)
    rows = rows_with_labels(data)
    fold = fold_of(data.user_id[rows])
    torch.manual_seed(seed)
    model = new_model(data, tok).to(device)
    set_categories(model, data, tok, items)
    kept = rows[~np.isin(fold, [*TEST, *CALIBRATION])]
    chosen = (name,) if name else LABELS
    fit(model, data, kept, seed=seed, epochs=epochs, objectives=chosen, progress=lambda _: None)
    calibrate(model, data, rows[np.isin(fold, CALIBRATION)])
    print(f"seed {seed}  {name or 'P-Score'}", flush=True)
    return predict(model, data, rows[np.isin(fold, TEST)])


def tables(result: dict[tuple[int, str], Said], seeds: list[int]) -> list[str]:
    """AUC, GAUC and calibration, an objective a line; a label with one class among the test users has none."""
    ranked = {"AUC": ["positives", "single", "tower", "hand sum", "P-Score", "P-Score - single", "P-Score - hand sum"]}
    ranked["GAUC"] = ranked["AUC"][1:5]
    lines: dict[str, list[str]] = {"AUC": [], "GAUC": [], "Calibration of the towers": []}
    for i, name in enumerate(LABELS):
        values: dict[str, list[Estimate]] = {}
        honest = []
        for seed in seeds:
            p, own = result[seed, ""], result[seed, name]
            has = p.known[:, i]
            y, user = p.y[has, i], p.user[has]
            if not 0 < y.sum() < len(y):
                break
            scores = {"single": own.towers[:, i], "tower": p.towers[:, i], "hand sum": p.hand_sum, "P-Score": p.score}
            for kind, score in scores.items():
                values.setdefault(f"AUC {kind}", []).append(known(auc(score[has], y, user)))
                within = gauc(score[has], y, user, seed)
                values.setdefault(f"GAUC {kind}", []).extend([within] if within else [])
            for kind in ("single", "hand sum"):
                gap = auc_gap(p.score[has], scores[kind][has], y, user)
                values.setdefault(f"AUC P-Score - {kind}", []).append(known(gap))
            sign = -1 if name == "hate" else 1
            claimed = 1 / (1 + np.exp(-sign * p.towers[has, i]))
            honest.append(calibration(claimed, y if sign > 0 else 1 - y))
        if len(honest) < len(seeds):
            continue
        positives = f"{int(len(y) - y.sum() if name == 'hate' else y.sum()):,}"
        cells = [spread(values[f"AUC {k}"]) for k in ranked["AUC"][1:5]] + [
            gap_cell(values[f"AUC {k}"]) for k in ranked["AUC"][5:]
        ]
        lines["AUC"].append(" | ".join([name, positives, *cells]))
        lines["GAUC"].append(" | ".join([name, *(spread(values[f"GAUC {k}"]) for k in ranked["GAUC"])]))
        error, ratio = (float(np.mean([x for x in column if x is not None])) for column in zip(*honest))
        lines["Calibration of the towers"].append(f"{name} | {error:.4f} | {ratio:.2f}")
    columns = ranked | {"Calibration of the towers": ["expected calibration error", "predicted / observed"]}
    out = []
    for title, rows in lines.items():
        out += [
            f"## {title}",
            "",
            f"| objective | {' | '.join(columns[title])} |",
            "|---" * (1 + len(columns[title])) + "|",
        ]
        out += [*(f"| {row} |" for row in rows), ""]
    return out


def known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None  # both classes were seen to be there
    return estimate


def spread(estimates: list[Estimate]) -> str:
    values = [e.value for e in estimates]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {T95[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


def gap_cell(estimates: list[Estimate]) -> str:
    value, low, high = (float(np.mean([getattr(e, k) for e in estimates])) for k in ("value", "low", "high"))
    text = f"{value:+.4f} ({low:+.4f}, {high:+.4f})"
    return f"**{text}**" if low > 0 or high < 0 else text


if __name__ == "__main__":
    main()
