"""KuaiRand-Pure: which recipe of a first day ranks 2022-05-05 best, by models of the days before it.

best_recipe(pool, Path("build/quality/kuairand_lists/recipes.json"), (1, prepared, "cuda", 3)).recipe   # of RECIPES
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import commit
from benchmarks.quality.first_day import first_day
from benchmarks.quality.first_day_step import Recipe
from benchmarks.quality.joint import OWN, Scored, candidates, shown_weights
from benchmarks.quality.pieces import regrouped
from models.evaluation.evaluate import Ranker, held_out
from models.evaluation.metrics import ranking_metrics
from models.onerec.config import OneRecConfig
from models.training.checkpoint import Tokenizer

CHOOSE = "2022-05-04"  # the last day of training while choosing
BEST = Recipe(epochs=16, dropout=0.2)  # of eight without what follows, .3246 on 2022-05-05
# Every impression is a target of the item head, as in EASE of everything shown.
ALL = Recipe(epochs=20, batch=2048, rate=1.5, dropout=0.3, shown_weight=1.0, item_weight=0.3)
HEAD = dataclasses.replace(ALL, pieces=4, item_weight=1.0)  # "all shown, in pieces, item head 1"
# Every event of a short history is an example too: docs/decisions/quality.md, the largest gain of all.
EVENTS = dataclasses.replace(HEAD, drop_events=0.2, least=1.0, batch=512, rate=0.75, short=64, event_weight=0.25)
WIDE = dataclasses.replace(EVENTS, d_model=192)
RECIPES = {
    "16 epochs, dropout .2": BEST,
    "shown .3": dataclasses.replace(BEST, shown_weight=0.3),
    "all shown": ALL,
    "all shown, in pieces": dataclasses.replace(ALL, pieces=4),
    "all shown, in pieces, old as new": dataclasses.replace(ALL, pieces=4, least=1.0),
    "all shown, in pieces, hashed items": dataclasses.replace(ALL, pieces=4, history="hashed"),
    "all shown, in pieces, 40 passes": dataclasses.replace(ALL, pieces=4, epochs=40),
    "all shown, in pieces of two": dataclasses.replace(ALL, pieces=2),
    "all shown, in pieces, twice as wide": dataclasses.replace(ALL, pieces=4, d_model=192),
    "all shown, in pieces, item head 1": HEAD,
    "all shown, in pieces, item head 3": dataclasses.replace(HEAD, item_weight=3.0),
    "all shown, in pieces, item head 1, 30 passes": dataclasses.replace(HEAD, epochs=30),
    "forgets .2 of events": dataclasses.replace(HEAD, drop_events=0.2),
    "forgets .3 of events, .5 of traits": dataclasses.replace(HEAD, drop_events=0.3, drop_static=0.5),
    "forgets .4 of events, 30 passes": dataclasses.replace(HEAD, drop_events=0.4, epochs=30),
    "forgets .3 of events, .3 of traits, dropout .4, 30 passes": dataclasses.replace(
        HEAD, drop_events=0.3, drop_static=0.3, dropout=0.4, epochs=30
    ),
    "short 64, batches of 512, old as new": dataclasses.replace(EVENTS, event_weight=0.0),
    "events of 64": EVENTS,
    "events of 64, weigh 1": dataclasses.replace(EVENTS, event_weight=1.0),
    "events of 64, twice as wide": WIDE,
    # Not tried yet. A short history of 20 events is what the pipeline's features hold.
    "events of 20, twice as wide": dataclasses.replace(WIDE, short=20),
    "events of 64, 256 wide": dataclasses.replace(EVENTS, d_model=256),
    "events of 64, twice as wide, 30 passes": dataclasses.replace(WIDE, epochs=30),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """What validation chose: a key of RECIPES, the weights of item head and co-occurrence where both join the codes,
    and of the item head where it joins them alone; and how a later day is trained (`later_days.LATER`)."""

    recipe: str
    joint: tuple[float, float]
    own: float
    later: str = "pretrain"


def up_to(prepared: Path, day: str) -> list[Path]:
    """Training partitions of all days up to one. Raises ValueError without any."""
    found = [p for p in sorted((prepared / "training").glob("dt=*.parquet")) if p.stem <= f"dt={day}"]
    if not found:
        raise ValueError(f"{prepared} holds no training rows up to {day}; prepare it with --data")
    return found


def ranker_of(
    prepared: Path, day: str, tokenizer: Path, model: Path, device: str
) -> tuple[Ranker, list[np.ndarray], list[np.ndarray]]:
    """The model over the users of the day after `day`, with what each wants and has seen."""
    short = OneRecConfig.load(model / "config.json").short_len
    rows_of = regrouped(prepared / "evaluation" / f"dt={day}.parquet", short)
    rows, wanted, seen = held_out(rows_of)
    return Ranker(rows_of, Tokenizer.load(tokenizer), model, rows, device), wanted, seen


def ranked(prepared: Path, day: str, tokenizer: Path, model: Path, device: str) -> tuple[np.ndarray, np.ndarray, float]:
    """(user ids, lists, recall@50) on the day after `day`."""
    ranker, wanted, seen = ranker_of(prepared, day, tokenizer, model, device)
    found, _ = ranker.rank(seen)
    return ranker.data.user_id[ranker.rows], found, float(ranking_metrics(found, wanted)["recall@50"].mean())


def scores(
    prepared: Path, day: str, tokenizer: Path, model: Path, device: str
) -> tuple[np.ndarray, Scored, list[np.ndarray]]:
    """User ids, scored candidates and what is wanted, on the day after `day`."""
    ranker, wanted, seen = ranker_of(prepared, day, tokenizer, model, device)
    return ranker.data.user_id[ranker.rows], candidates(ranker, seen, _shown(prepared, day, tokenizer)), wanted


@functools.lru_cache(maxsize=1)
def _shown(prepared: Path, day: str, tokenizer: Path) -> np.ndarray:
    """`shown_weights`, which several models of one day share."""
    return shown_weights(up_to(prepared, day), Tokenizer.load(tokenizer).catalogue)


def judged(prepared: Path, day: str, tokenizer: Path, model: Path, device: str) -> dict[str, Any]:
    """recall@50 of the day after `day` by codes, by both heads, and by the joint score, each at its best weights."""
    recall = ranked(prepared, day, tokenizer, model, device)[2]
    _, scored, wanted = scores(prepared, day, tokenizer, model, device)
    weights, joint = scored.best_weights(wanted)
    (own_weight, _), own = scored.best_weights(wanted, OWN)
    return {"recall@50": recall, "own": own, "own_weight": own_weight, "joint": joint, "weights": list(weights)}


def choose(recipe: str, seed: int, prepared: Path, device: str, jobs: int) -> dict[str, Any]:
    """What `judged` finds on 2022-05-05 of a model trained on the days before, and the seconds that training took."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    begun, sets = time.monotonic(), up_to(prepared, CHOOSE)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer, out = prepared / "tokenizer" / f"choose_{seed}", Path(scratch)
        first_day(training_sets=sets, tokenizer=tokenizer, out=out, recipe=RECIPES[recipe], seed=seed, device=device)
        seconds = round(time.monotonic() - begun, 1)
        found = judged(prepared, CHOOSE, tokenizer, out, device)
    return {"recipe": recipe, "seed": seed, **found, "seconds": seconds, "commit": commit()}


def collect(tasks: list[AsyncResult], found: list[dict[str, Any]], tried: Path) -> None:
    """Adds each trial to `found` and its file as it ends. Raises what the first of those that failed raised, last."""
    failed: list[Exception] = []
    tried.parent.mkdir(parents=True, exist_ok=True)
    while tasks:
        ready = [task for task in tasks if task.ready()]
        for task in ready:
            tasks.remove(task)
            try:
                found.append(task.get())
            except Exception as error:  # one that fails must not end the others
                failed.append(error)
                continue
            print(json.dumps(found[-1]), flush=True)
            staged = tried.with_suffix(".part")
            staged.write_text(json.dumps(found, indent=1) + "\n")
            os.replace(staged, tried)
        if not ready:
            tasks[0].wait(1)
    if failed:
        raise failed[0]


def best_recipe(
    pool: Pool, tried: Path, more: tuple[int, Path, str, int], names: Sequence[str] | None = None
) -> Chosen:
    """Of the named recipes (default: all) and those tried before, the one with the best joint score on 2022-05-05.

    `tried` holds the trials, each written as it ends; those of it are not made again.
    """
    found = json.loads(tried.read_text()) if tried.exists() else []
    seed, *_ = more
    known = {t["recipe"] for t in found if t["seed"] == seed}
    collect([pool.apply_async(choose, (r, *more)) for r in names or RECIPES if r not in known], found, tried)
    mine = [t for t in found if t["seed"] == seed and t["recipe"] in RECIPES]
    best = max(mine, key=lambda t: t["joint"])
    return Chosen(recipe=best["recipe"], joint=tuple(best["weights"]), own=best["own_weight"])
