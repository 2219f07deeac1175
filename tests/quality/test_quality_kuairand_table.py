"""Lists come back as written and are matched by user; the table's means, deviations and paired differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import lists
from benchmarks.quality.kuairand_table import BARS, Model, summary
from benchmarks.quality.lists import Lists


def some(model: str, seed: int, users: list[int], ranked: list[list[int]]) -> Lists:
    return Lists(model=model, seed=seed, user_id=np.array(users), ranked=np.array(ranked), about={"device": "CPU"})


def test_lists_come_back(tmp_path: Path) -> None:
    path = lists.save(tmp_path, some("OneRec, RSFT + ECPO", 2, [7, 3], [[1, 2], [40_000, -1]]))
    assert path.name == "onerec-rsft-ecpo_2.npz" and list(tmp_path.iterdir()) == [path]
    (found,) = lists.read(tmp_path)
    assert (found.model, found.seed, found.about) == ("OneRec, RSFT + ECPO", 2, {"device": "CPU"})
    assert found.ranked.tolist() == [[1, 2], [40_000, -1]]
    assert found.of(np.array([3, 7])).tolist() == [[40_000, -1], [1, 2]]
    with pytest.raises(ValueError, match="ranked 1 of 2 users"):
        found.of(np.array([3, 5]))
    many = some("SASRec", 1, list(range(99)), [[user] for user in range(99)])
    assert many.of(np.arange(100))[:, 0].tolist() == [*range(99), -1]  # one in a hundred may lack a list
    with pytest.raises(ValueError, match="holds no lists"):
        lists.read(tmp_path / "empty")


def test_means_over_seeds_and_differences_to_the_bar() -> None:
    wanted = [np.array([1]), np.array([2])]
    blank = np.full((2, 100), -1)
    hit, miss = blank.copy(), blank.copy()
    hit[:, 0] = [1, 2]
    half = blank.copy()
    half[0, 0] = 1
    bar, model = summary(
        [Model(name=BARS[0], ranked=[miss], about={}), Model(name="OneRec", ranked=[hit, half], about={})], wanted
    )
    assert bar["recall@50"] == 0 and bar["recall@50_sd"] is None
    assert model["recall@50"] == 0.75
    assert model["recall@50_sd"] == pytest.approx(np.std([1, 0.5], ddof=1))
    assert bar["minus"] == {} and model["minus"] == {BARS[0]: model["interval"]}  # the bar's recall is 0 for every user
    assert 0.5 <= model["interval"][0] <= model["interval"][1] <= 1
