"""Lists come back as written and are matched by user; the table's means, deviations and paired differences."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import lists
from benchmarks.quality.kuairand_table import BARS, Model, main, summary
from benchmarks.quality.lists import Lists
from tests.quality.test_quality_kuairand import write_logs


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


def test_a_row_without_lists_stays_and_new_ones_are_compared_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users 1 and 3 want items 12 and 10; SASRec, a bar, finds the first, OneRec then both."""
    write_logs(tmp_path)

    def rows(model: str, ranked: list[list[int]], *more: str) -> dict[str, dict]:
        folder = tmp_path / model
        found = Lists(model=model, seed=1, user_id=np.array([1, 3]), ranked=np.array(ranked), about={"epochs": 3})
        lists.save(folder, Lists(**{**vars(found), "about": {"device": "CPU", "commit": "0", **found.about}}))
        out = tmp_path / "page.md"
        monkeypatch.setattr(
            sys, "argv", ["table", "--data", str(tmp_path), "--lists", str(folder), "--out", str(out), *more]
        )
        main()
        return {line["model"]: line for line in json.loads(out.with_suffix(".json").read_text())["models"]}

    first = rows("SASRec", [[12, -1], [11, -1]])["SASRec"]
    assert first["recall@50"] == 0.5
    both = rows("OneRec", [[12, -1], [10, -1]])
    assert both["SASRec"] == first and both["OneRec"]["recall@50"] == 1
    assert "SASRec" in both["OneRec"]["minus"] and both["OneRec"]["minus"]["SASRec"][1] == 1.0
    page = (tmp_path / "page.md").read_text()
    assert "Kept from the page before: SASRec." in page and page.count("| SASRec |") == 2
    assert "SASRec" not in rows("OneRec", [[12, -1], [10, -1]], "--anew")
