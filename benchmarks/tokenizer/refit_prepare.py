"""Prepare the benchmark of a refit: code tables of every way and seed, and rows of KuaiRand days as padded arrays.

    python -m benchmarks.tokenizer.refit_prepare --workspace var/kuairand-pure --fit 2022-05-02 --refit 2022-05-05

For each seed the tokenizer is fitted on the days up to --fit and refitted on those up to --refit, once as the refresh
does it (from the old centroids) and once from anew; both keep labels by matching. The catalogue is the one of --refit
throughout. Writes OUT/tables.npz (codes [N, 3], sources [3, K] of the carry, churn) and OUT/rows.npz: the parts of a
batch of the last --days up to --fit and of --refit, rows with a positive alone, histories cut to the model's lengths.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.tokenizer.refit import TARGETS, reduced_config
from models.tokenizer import refresh
from models.training.checkpoint import Tokenizer
from models.training.data import TrainingSet
from models.training.pretrain import static_features


def refitted(items: Path, days: list[Path], before: Path, out: Path, seed: int, warm: bool) -> list[float]:
    """Refit into `out`; without `warm` from anew. Returns the churn."""
    books = refresh._books
    if not warm:
        refresh._books = lambda v, size, s, variant, warm=None: books(v, size, s, variant)
    try:
        out.mkdir()
        return refresh.refresh_tokenizer(
            items=items, training_sets=days, previous=before, out=out, seed=seed, refit=True, progress=lambda _: None
        )["churn"]
    finally:
        refresh._books = books


def padded(days: list[Path], tok: Tokenizer, static: int, most: int) -> dict[str, np.ndarray]:
    """Up to `most` random rows with a positive, as `TrainingSet.batch` gives them."""
    config = reduced_config(tok.codebook_size, len(tok.catalogue), static)
    data = TrainingSet(days, tok.catalogue, config)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(data.targets.lengths > 0))[:most]
    return {
        k: v.numpy() if v.dtype == torch.bool else v.numpy().astype(np.int32)
        for k, v in data.batch(rows, TARGETS).items()
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, required=True, help="folder of a source, as var/kuairand-pure")
    p.add_argument("--fit", required=True, help="day of the first fit")
    p.add_argument("--refit", required=True, help="day of the refit")
    p.add_argument("--days", type=int, default=4, help="days that the model is pre-trained on")
    p.add_argument("--rows", type=int, default=16_000, help="most rows of them")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--out", type=Path, default=Path("prepared/refit"))
    args = p.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    days = sorted((args.workspace / "features" / "training").glob("dt=*/part-0.parquet"))
    first = [d for d in days if d.parent.name <= f"dt={args.fit}"]
    every = [d for d in days if d.parent.name <= f"dt={args.refit}"]
    items = args.workspace / "lake" / "items" / f"dt={args.refit}" / "part-0.parquet"
    tables: dict[str, np.ndarray] = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            fit = Path(folder) / "fit"
            fit.mkdir()
            refresh.refresh_tokenizer(
                items=items, training_sets=first, previous=None, out=fit, seed=seed, progress=lambda _: None
            )
            tok = Tokenizer.load(fit)
            tables[f"fit_{seed}"] = tok.sid_NL.astype(np.int16)
            for name, warm in (("warm", True), ("cold", False)):
                churn = refitted(items, every, fit, Path(folder) / name, seed + 100, warm)
                new = Tokenizer.load(Path(folder) / name)
                assert new.carry is not None and np.array_equal(new.catalogue.item_ids, tok.catalogue.item_ids)
                tables[f"{name}_{seed}"] = new.sid_NL.astype(np.int16)
                tables[f"{name}_{seed}_source"] = np.stack(new.carry.source).astype(np.int16)
                tables[f"{name}_{seed}_churn"] = np.array(churn)
                print(seed, name, [f"{c:.1%}" for c in churn], flush=True)
    tables["codebook"] = np.array([tok.codebook_size])
    np.savez_compressed(args.out / "tables.npz", **tables)
    static = static_features(first[-1])
    past, day = padded(first[-args.days :], tok, static, args.rows), padded(every[-1:], tok, static, args.rows)
    arrays = {f"past_{k}": v for k, v in past.items()} | {f"day_{k}": v for k, v in day.items()}
    np.savez_compressed(args.out / "rows.npz", **arrays)
    print(f"{len(past['static']):,} rows to pre-train on, {len(day['static']):,} of the day of the refit")


if __name__ == "__main__":
    main()
