"""OneRec's rows, end to end on a synthetic source of two days: once, day by day, and the tokenizers of both."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import kuairand_onerec, kuairand_prepare, later_days, lists, recipes, release_lists
from benchmarks.quality.first_day import first_day
from benchmarks.quality.first_day_step import Recipe
from models.training.align_config import AlignConfig
from tests.models.conftest import world  # noqa: F401  (the synthetic source of the models' tests)

DAYS = ("2022-05-05", "2022-05-06")


@pytest.fixture
def prepared(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """What `prepare` makes of a workspace; the rows after the last day are the evaluation's."""
    few = functools.partial(AlignConfig, min_steps=2, max_steps=2, min_users=8, probe_users=8)
    for name, value in {
        "DAYS": DAYS,
        "CHOOSE": DAYS[0],
        "LAST": DAYS[1],
        "RECIPES": {"short": Recipe(epochs=2, batch=16, d_model=32, short=24, event_weight=0.25)},
        "AlignConfig": few,
        "align_later_day": few,
    }.items():
        for module in (kuairand_onerec, kuairand_prepare, later_days, recipes):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    workspace = tmp_path / "workspace"
    for day, rows in zip(DAYS, world.training):
        for file, table in ((rows, "features/training"), (world.evaluation, "features/evaluation")):
            put(file, workspace / table / f"dt={day}" / "part-0.parquet")
        put(world.items, workspace / "lake/items" / f"dt={day}" / "part-0.parquet")
    kuairand_onerec.prepare(workspace, tmp_path / "prepared", [1])
    return tmp_path / "prepared"


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)


def test_both_kinds_leave_their_lists(prepared: Path, tmp_path: Path) -> None:
    made = sorted(str(p.relative_to(prepared)) for p in (prepared / "tokenizer").glob("**/trie.safetensors"))
    assert [m.removeprefix("tokenizer/").removesuffix("/trie.safetensors") for m in made] == [
        "choose_1",
        "daily_1/2022-05-05",
        "daily_1/2022-05-06",
        "once_1",
    ]
    for kind in kuairand_onerec.KINDS:
        chosen = recipes.Chosen(recipe="short", joint=(1.0, 12.0), own=2.0)
        kuairand_onerec.one(kind, 1, chosen, kuairand_onerec.CHAINS, prepared, tmp_path / "lists", "cpu", 1)
    found = lists.read(tmp_path / "lists")
    both = [t for kind in kuairand_onerec.KINDS for t in kuairand_onerec.titles(kind, kuairand_onerec.CHAINS)]
    assert {f.model for f in found} == set(both) and {
        "OneRec, once + item head",
        "OneRec, day by day + item head",
    } <= set(both)
    for f in found:
        assert f.seed == 1 and f.about["recipe"] == "short"
        assert ("kept" in f.about) == ("ECPO" in f.model)
        assert all(len(np.unique(row[row >= 0])) == (row >= 0).sum() > 0 for row in f.ranked)


def test_a_recipe_is_judged_on_the_day_that_it_has_not_seen(prepared: Path) -> None:
    trial = recipes.choose("short", 1, prepared, "cpu", 1)
    assert all(0 < trial[name] <= 1 for name in ("joint", "own", "recall@50")) and trial["own_weight"] > 0
    assert (trial["recipe"], trial["seed"]) == ("short", 1)
    with pytest.raises(ValueError, match="prepare it with --data"):
        recipes.up_to(prepared, "2022-05-01")


def test_ways_of_a_later_day_are_judged_from_one_first_day(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts: list[Path] = []
    bootstrap = later_days.bootstrap
    monkeypatch.setattr(later_days, "bootstrap", lambda *args: firsts.append(bootstrap(*args)) or firsts[-1])
    monkeypatch.setattr(later_days, "CHOOSE", DAYS[1])
    monkeypatch.setattr(later_days, "LATER", {"pretrain": None, "2 at .3": later_days.Later(passes=2, rate=0.3)})
    tried = tmp_path / "lists" / "later.json"
    with ThreadPool(1) as pool:  # of threads: what is patched does not reach another process
        more = (1, prepared, "cpu", 1)
        found = later_days.choose_later(pool, tried, "short", more)
        assert later_days.choose_later(pool, tried, "short", more) == found and len(firsts) == 1
    assert [t["later"] for t in found] == ["none", "pretrain", "2 at .3"] and len(firsts) == 1
    assert all(0 < t[name] <= 1 for t in found for name in ("recall@50", "own", "joint"))
    assert json.loads(tried.read_text()) == found


def test_trials_are_written_as_they_end_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is of threads: a patched `choose` does not reach another process."""
    tried, asked, recall = tmp_path / "lists" / "recipes.json", [], {"a": 0.1, "b": 0.3, "c": 0.2}

    def trial(recipe: str, seed: int, *_) -> dict:
        asked.append(recipe)
        if recipe == "broken":
            raise RuntimeError("no memory")
        return {"recipe": recipe, "seed": seed, "joint": recall[recipe], "weights": [1.0, 6.0], "own_weight": 2.0}

    monkeypatch.setattr(recipes, "choose", trial)
    more = (1, tmp_path, "cpu", 1)
    with ThreadPool(1) as pool:
        monkeypatch.setattr(recipes, "RECIPES", dict.fromkeys(["a", "broken", "b"]))
        with pytest.raises(RuntimeError, match="no memory"):
            recipes.best_recipe(pool, tried, more)
        assert [t["recipe"] for t in json.loads(tried.read_text())] == ["a", "b"]
        monkeypatch.setattr(recipes, "RECIPES", dict.fromkeys(["a", "b", "c"]))
        assert recipes.best_recipe(pool, tried, more, ["a"]).recipe == "b"  # nothing new is asked for
        assert asked == ["a", "broken", "b"]
        assert recipes.best_recipe(pool, tried, more) == recipes.Chosen(recipe="b", joint=(1.0, 6.0), own=2.0)
        assert asked == ["a", "broken", "b", "c"]
        monkeypatch.setattr(recipes, "RECIPES", dict.fromkeys(["a", "c"]))
        assert recipes.best_recipe(pool, tried, more).recipe == "c"  # a recipe that is no more is not chosen


def test_a_release_leaves_its_lists(
    world,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = tmp_path / "release"
    recipe = Recipe(epochs=1, batch=32, d_model=16)
    out, sets = release / "model", list(world.training)
    first_day(training_sets=sets, tokenizer=world.tokenizer, out=out, recipe=recipe, seed=1, device="cpu")
    shutil.copytree(world.tokenizer, release / "tokenizer")
    (release / "manifest.json").write_text(json.dumps({"release_id": "2022-05-06-abc", "seed": 7}))
    places = [f"--release={release}", f"--evaluation={world.evaluation}", f"--lists={tmp_path / 'lists'}"]
    monkeypatch.setattr(sys, "argv", ["x", *places])
    release_lists.main()
    (found,) = lists.read(tmp_path / "lists")
    assert (found.model, found.seed, found.about["release"]) == (release_lists.TITLE, 7, "2022-05-06-abc")
    assert len(found.ranked) == len(found.user_id) > 0
