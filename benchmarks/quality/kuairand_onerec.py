"""KuaiRand-Pure: OneRec's rows of the table, trained once and day by day, with and without alignment.

    python -m benchmarks.quality.kuairand_onerec --data LOGS/kuairand-pure --prepared build/quality/kuairand_onerec
    python -m benchmarks.quality.kuairand_onerec --prepared build/quality/kuairand_onerec --device cuda

The first runs the day's own steps (ingest, validate, pathways) for eight days and makes the tokenizers of every seed:
some minutes on a CPU. The second is for a GPU. "Once" is a first day at 2022-05-05; "day by day" is a first day at
2022-04-28 and seven later days, each from the model of the day before. A first day's pre-training is `first_day.py`
with the best of `recipes.py` on 2022-05-05, by a model that has seen the days before it (one seed); a later day's is of
`later_days.py`; the reward model, RSFT + ECPO and the ranking are what the day calls. "+ item head" ranks by both of
the model's heads, "+ co-occurrence of the shown" by the joint score of `joint.py`. All are measured on the unseen
positives of 2022-05-06.
Lists go to `--lists`, for `benchmarks.quality.kuairand_table`, and the trials of recipes to recipes.json
there, each as its training ends; what is there already is not trained again. In order of worth, where time is short:

    ... --kinds once --chains pretrained --jobs 3     # the recipe, then three trainings: the row that must lead
    ... --recipe RECIPE --try-later                   # how a later day is best trained: later.json
    ... --kinds daily --chains pretrained --jobs 3    # day by day, with --recipe and --later
    ... --jobs 3                                      # with alignment
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import commit, hardware
from benchmarks.quality import lists
from benchmarks.quality.first_day import first_day
from benchmarks.quality.kuairand_prepare import DAYS, LAST, features, prepare
from benchmarks.quality.later_days import LATER, bootstrap, choose_later, train_later
from benchmarks.quality.pieces import regrouped
from benchmarks.quality.recipes import RECIPES, Chosen, best_recipe, ranked, scores, up_to
from models.evaluation.metrics import ranking_metrics
from models.onerec.config import OneRecConfig
from models.reward.measure import calibrate
from models.reward.pscore import PScore
from models.reward.train import (
    CALIBRATION,
    EPOCHS,
    TEST,
    fit,
    fold_of,
    labelled,
    new_model,
    rows_with_labels,
    set_categories,
)
from models.training.align import align
from models.training.align_config import AlignConfig, align_later_day
from models.training.checkpoint import Tokenizer

GRAPHS = not os.environ.get("ONEREC_NO_GRAPHS")  # set it where a first day's step cannot be captured
KINDS = {
    "once": {"pretrained": "OneRec, once", "aligned": "OneRec, once, RSFT + ECPO"},
    "daily": {"pretrained": "OneRec, day by day", "aligned": "OneRec, day by day, RSFT + ECPO"},
}
OWN = {kind: f"{rows['pretrained']} + item head" for kind, rows in KINDS.items()}
JOINT = {kind: f"{rows['pretrained']} + co-occurrence of the shown" for kind, rows in KINDS.items()}
CHAINS = ["pretrained", "aligned"]


def quiet(line: str) -> None:
    """Progress of a training: its log is of no use here."""


def aligned(
    prepared: Path, day: str, tokenizer: Path, out: Path, *, previous: Path | None, seed: int, device: str
) -> dict[str, Any]:
    """Reward model and alignment of a day whose model lies in out/pretrained; the result lies in out/aligned."""
    for name in ("reward", "aligned"):
        (out / name).mkdir()
    sets = up_to(prepared, day)
    short = OneRecConfig.load(out / "pretrained" / "config.json").short_len
    rewarded(
        sets if previous is None else sets[-1:],
        tokenizer,
        prepared / "items" / f"dt={day}.parquet",
        previous=previous and previous / "reward",
        out=out / "reward",
        seed=seed,
        device=device,
    )
    return align(
        training_sets=[regrouped(sets[-1], short)],
        tokenizer=tokenizer,
        model=out / "pretrained",
        reward=out / "reward",
        out=out / "aligned",
        seed=seed,
        progress=quiet,
        config=AlignConfig() if previous is None else align_later_day(),
        device=device,
    )


def rewarded(
    sets: list[Path], tokenizer: Path, items: Path, *, previous: Path | None, out: Path, seed: int, device: str
) -> None:
    """`models.reward.train.train_reward` on a device, without its measures."""
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    data = labelled(sets, tok)
    model = new_model(data, tok) if previous is None else PScore.load(previous, tok)
    set_categories(model, data, tok, items)
    model.to(device)
    rows = rows_with_labels(data)
    fold = fold_of(data.user_id[rows])
    trained = rows[~np.isin(fold, [*TEST, *CALIBRATION])]
    fit(model, data, trained, seed=seed, epochs=EPOCHS if previous is None else 1, progress=quiet)
    calibrate(model, data, rows[np.isin(fold, CALIBRATION)])
    model.cpu().save(out)


def one(
    kind: str,
    seed: int,
    chosen: Chosen,
    chains: list[str],
    prepared: Path,
    folder: Path,
    device: str,
    jobs: int,
) -> None:
    """The rows of a kind: without alignment, with it, or both."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    begun, named = time.monotonic(), KINDS[kind]
    about = {"device": hardware(device), "commit": commit(), "recipe": chosen.recipe}
    about |= {"later": chosen.later} if kind == "daily" else {}

    def keep(chain: str, tokenizer: Path, model: Path, **more: Any) -> None:
        users, found, recall = ranked(prepared, LAST, tokenizer, model, device)
        save(named[chain], users, found, recall, more)

    def keep_joint(tokenizer: Path, model: Path) -> None:
        users, scored, wanted = scores(prepared, LAST, tokenizer, model, device)
        for title, weights in ((OWN[kind], (chosen.own, 0.0)), (JOINT[kind], chosen.joint)):
            found = scored.rank(weights)
            recall = float(ranking_metrics(found, wanted)["recall@50"].mean())
            save(title, users, found, recall, {"weights": list(weights)})

    def save(title: str, users: np.ndarray, found: np.ndarray, recall: float, more: dict[str, Any]) -> None:
        more = more | {"seconds": round(time.monotonic() - begun, 1)}
        lists.save(folder, lists.Lists(model=title, seed=seed, user_id=users, ranked=found, about=about | more))
        print(f"{title}, seed {seed}: recall@50 {recall:.4f}, {json.dumps(more)}", flush=True)

    with tempfile.TemporaryDirectory() as folder_of_models:
        scratch = Path(folder_of_models)
        if kind == "once":
            tokenizer, recipe = prepared / "tokenizer" / f"once_{seed}", RECIPES[chosen.recipe]
            sets, out = up_to(prepared, LAST), scratch / "pretrained"
            first_day(training_sets=sets, tokenizer=tokenizer, out=out, recipe=recipe, seed=seed, device=device)
            if "pretrained" in chains:
                keep("pretrained", tokenizer, out)
                keep_joint(tokenizer, out)
            if "aligned" in chains:
                found = aligned(prepared, LAST, tokenizer, scratch, previous=None, seed=seed, device=device)
                keep("aligned", tokenizer, scratch / "aligned", kept=found["kept"])
            return
        first = bootstrap(prepared, chosen.recipe, seed, device, scratch / "first")  # both chains start from it
        for chain in chains:
            before: Path | None = None
            kept: list[float] = []
            for day in DAYS:
                tokenizer, out = prepared / "tokenizer" / f"daily_{seed}" / day, scratch / chain / day
                if before is None:
                    shutil.copytree(first, out / "pretrained")
                else:
                    how = {"recipe": chosen.recipe, "later": chosen.later, "seed": seed, "device": device}
                    train_later(prepared, day, before / chain, out / "pretrained", **how)
                if chain == "aligned":
                    found = aligned(prepared, day, tokenizer, out, previous=before, seed=seed, device=device)
                    kept.append(found["kept"])
                before = out
            keep(chain, tokenizer, out / chain, **({"kept": kept} if kept else {}))
            if chain == "pretrained":
                keep_joint(tokenizer, out / chain)


def titles(kind: str, chains: list[str]) -> list[str]:
    """Rows that `one` leaves."""
    return [KINDS[kind][chain] for chain in chains] + [OWN[kind], JOINT[kind]] * ("pretrained" in chains)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="folder of KuaiRand-Pure: prepare, train nothing")
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    p.add_argument("--chains", nargs="+", default=CHAINS, choices=CHAINS, help="without alignment, with it, or both")
    known = {"choices": list(RECIPES), "metavar": "RECIPE"}
    p.add_argument("--recipe", **known, help="of a first day, see recipes.py (default: the best on 2022-05-05)")
    p.add_argument("--weights", type=float, nargs=2, default=(1.0, 12.0), help="of the joint score, with --recipe")
    p.add_argument("--own-weight", type=float, default=1.0, help="of the item head beside the codes, with --recipe")
    p.add_argument("--try", dest="names", nargs="+", **known, help="try these recipes where none is given (all)")
    p.add_argument("--choose-only", action="store_true", help="end when a recipe is chosen")
    p.add_argument(
        "--later", default="pretrain", choices=list(LATER), help="how a later day is trained (later_days.py)"
    )
    ways = {"choices": ["none", *LATER], "metavar": "LATER"}
    p.add_argument("--try-later", nargs="*", **ways, help="with --recipe: try these (all) on 2022-05-05, and end")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--jobs", type=int, default=1, help="trainings side by side (1)")
    p.add_argument("--lists", type=Path, default=Path("build/quality/kuairand_lists"))
    args = p.parse_args()
    if args.data:
        prepare(features(args.data.resolve(), args.prepared / "var"), args.prepared, args.seeds, args.data)
        return
    if args.try_later is not None and args.recipe is None:
        p.error("--try-later trains later days after a first day: name its --recipe")
    of_trials = (args.seeds[0], args.prepared, args.device, args.jobs)
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        if args.try_later is not None:
            choose_later(pool, args.lists / "later.json", args.recipe, of_trials, args.try_later)
            return
        if args.recipe is not None:
            chosen = Chosen(recipe=args.recipe, joint=tuple(args.weights), own=args.own_weight, later=args.later)
        else:
            tried = args.lists / "recipes.json"
            chosen = best_recipe(pool, tried, of_trials, args.names)
            print(f"chosen: {chosen}", flush=True)
            if args.choose_only:
                return
        more = (chosen, args.chains, args.prepared, args.lists, args.device, args.jobs)
        wanted = [(kind, seed) for kind in args.kinds for seed in args.seeds]
        done = [
            all(lists.path(args.lists, t, seed).exists() for t in titles(kind, args.chains)) for kind, seed in wanted
        ]
        tasks = [pool.apply_async(one, (*w, *more)) for w, is_done in zip(wanted, done) if not is_done]
        for task in tasks:
            task.wait()  # one that fails must not end the others
        for task in tasks:
            task.get()


if __name__ == "__main__":
    main()
