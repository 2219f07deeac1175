"""KuaiRand-Pure, day by day: what a later day trains from the model of the day before, and which way is best.

    choose_later(pool, Path("build/quality/kuairand_lists/later.json"), RECIPE, (1, prepared, "cuda", 3))

A later day sees its own rows alone. "pretrain" is the daily recipe: one pass over whole days.
The others train as the first day did (`first_day.later_day`): days in pieces, forgetting, everything shown. Chosen on
2022-05-05, by the model that the days up to 2022-05-04 have made; the first day is trained once for all of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit
from benchmarks.quality.first_day import first_day, later_day
from benchmarks.quality.kuairand_prepare import DAYS
from benchmarks.quality.pieces import regrouped
from benchmarks.quality.recipes import CHOOSE, RECIPES, collect, judged, up_to
from models.onerec.config import OneRecConfig
from models.training.pretrain import pretrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later:
    """Passes over a later day's rows, and the learning rate as a share of the first day's."""

    passes: int
    rate: float


LATER: dict[str, Later | None] = {
    "pretrain": None,
    "1 pass at .1": Later(passes=1, rate=0.1),
    "2 passes at .1": Later(passes=2, rate=0.1),
    "4 passes at .1": Later(passes=4, rate=0.1),
    "2 passes at .3": Later(passes=2, rate=0.3),
    "8 passes at .1": Later(passes=8, rate=0.1),
    "4 passes at .3": Later(passes=4, rate=0.3),
    "8 passes at .3": Later(passes=8, rate=0.3),
    "16 passes at .1": Later(passes=16, rate=0.1),
    "16 passes at .3": Later(passes=16, rate=0.3),
}


def bootstrap(prepared: Path, recipe: str, seed: int, device: str, out: Path) -> Path:
    """The first of the days, trained as a first day."""
    tokenizer = prepared / "tokenizer" / f"daily_{seed}" / DAYS[0]
    first_day(
        training_sets=up_to(prepared, DAYS[0]),
        tokenizer=tokenizer,
        out=out,
        recipe=RECIPES[recipe],
        seed=seed,
        device=device,
    )
    return out


def train_later(
    prepared: Path, day: str, previous: Path, out: Path, *, recipe: str, later: str, seed: int, device: str
) -> None:
    """One later day's pre-training into `out`, from the model in `previous`."""
    tokenizer = prepared / "tokenizer" / f"daily_{seed}" / day
    (rows_of,) = up_to(prepared, day)[-1:]
    out.mkdir(parents=True)
    if (how := LATER[later]) is not None:
        later_day(
            training_set=rows_of,
            tokenizer=tokenizer,
            previous=previous,
            out=out,
            recipe=RECIPES[recipe],
            passes=how.passes,
            rate=how.rate,
            seed=seed,
            device=device,
        )
        return
    short = OneRecConfig.load(previous / "config.json").short_len
    pretrain(
        training_sets=[regrouped(rows_of, short)],
        tokenizer=tokenizer,
        previous=previous,
        out=out,
        seed=seed,
        progress=lambda line: None,
        device=device,
    )


def later_models(
    prepared: Path, first: Path, scratch: Path, *, recipe: str, later: str, seed: int, device: str, last: str
) -> Iterator[tuple[str, Path]]:
    """(day, folder of its model) of the later days up to `last`, each from the one before."""
    previous = first
    for day in DAYS[1:]:
        if day > last:
            return
        out = scratch / later / day
        train_later(prepared, day, previous, out, recipe=recipe, later=later, seed=seed, device=device)
        yield day, out
        if previous != first:
            shutil.rmtree(previous)
        previous = out


def judge_later(
    first: Path, later: str, recipe: str, seed: int, prepared: Path, device: str, jobs: int
) -> dict[str, Any]:
    """What `recipes.judged` finds on 2022-05-05 of the later days trained so from the model in `first`."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    begun, day, model = time.monotonic(), DAYS[0], first
    with tempfile.TemporaryDirectory() as scratch:
        if later != "none":
            days = later_models(
                prepared, first, Path(scratch), recipe=recipe, later=later, seed=seed, device=device, last=CHOOSE
            )
            *_, (day, model) = days
        seconds = round(time.monotonic() - begun, 1)
        found = judged(prepared, CHOOSE, prepared / "tokenizer" / f"daily_{seed}" / day, model, device)
    return {"later": later, "recipe": recipe, "seed": seed, **found, "seconds": seconds, "commit": commit()}


def choose_later(
    pool: Pool, tried: Path, recipe: str, more: tuple[int, Path, str, int], names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The trials in `tried` and of the named ways (default: all), each written as it ends, none made twice.

    "none" is the first day's own model, which has seen no later day.
    """
    found = json.loads(tried.read_text()) if tried.exists() else []
    seed, prepared, device, _ = more
    known = {t["later"] for t in found if (t["recipe"], t["seed"]) == (recipe, seed)}
    if wanted := [name for name in names or ("none", *LATER) if name not in known]:
        with tempfile.TemporaryDirectory() as scratch:
            first = bootstrap(prepared, recipe, seed, device, Path(scratch) / "first")
            collect([pool.apply_async(judge_later, (first, name, recipe, *more)) for name in wanted], found, tried)
    return found
