"""A release by slice: the slices are right by hand, the rows agree with the day's own evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.evaluation.evaluate import held_out
from models.evaluation.metrics import bootstrap_interval
from models.evaluation.release import evaluate_release
from models.evaluation.slices import item_slices, slices, user_slices
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer, save_model


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_users_are_new_light_or_heavy() -> None:
    seen = [ids(), ids(1), ids(1, 2, 2), ids(1, 2, 3), ids(1, 2, 3, 4, 5)]
    found = user_slices(seen)
    assert found["new users"].tolist() == [True, False, False, False, False]
    assert found["heavy users"].tolist() == [False, False, False, True, True]  # the median of 1, 2, 3, 5 is 2.5
    assert found["light users"].tolist() == [False, True, True, False, False]


def test_items_are_head_tail_or_new() -> None:
    found = item_slices(ids(7, 5, 9, 4), ids(60, 25, 10, 5), ids(4, 5, 7, 8, 9))
    assert {k: v.tolist() for k, v in found.items()} == {
        "head items": [5, 7],  # 7 holds 60 %, and 5 is what takes it over 80 %
        "tail items": [4, 9],
        "new items": [8],
    }
    assert item_slices(ids(), ids(), ids(1, 2))["new items"].tolist() == [1, 2]


def test_an_item_slice_counts_only_its_items_and_their_users() -> None:
    relevant, seen = [ids(7, 4), ids(8), ids(9)], [ids(1), ids(1), ids()]
    found = {
        name: (users.tolist(), [w.tolist() for w in wanted])
        for name, users, wanted in slices(relevant, seen, (ids(7, 9, 4), ids(9, 1, 1)))
    }
    assert found["all"] == ([0, 1, 2], [[7, 4], [8], [9]])
    assert found["head items"] == ([0], [[7]])
    assert found["tail items"] == ([0, 2], [[4], [9]])
    assert found["new items"] == ([1], [[8]])
    assert found["new users"] == ([2], [[9]])
    assert "heavy users" not in found  # empty slices are left out


@pytest.fixture(scope="module")
def release(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    tokenizer = Tokenizer.load(world.tokenizer)
    torch.manual_seed(0)
    config = OneRecConfig(
        codebook_size=16, items=len(tokenizer.catalogue), static_features=3, d_model=16, heads=2, ffn_dim=16
    )
    (folder / "model").mkdir()
    save_model(OneRec(config, torch.from_numpy(tokenizer.sid_NL)), folder / "model")
    (folder / "tokenizer").symlink_to(world.tokenizer)
    return folder


def run(world, release, **changed):
    arguments = {"release": release, "evaluation_set": world.evaluation, "training_sets": world.training, "seed": 3}
    return evaluate_release(**(arguments | {"progress": lambda line: None} | changed))


def test_rows_hold_every_slice_with_an_interval_around_its_mean(world, release) -> None:
    report = run(world, release)
    rows = held_out(world.evaluation)[0]
    everyone = [r for r in report["rows"] if r["slice"] == "all"]
    assert [r["model"] for r in everyone] == ["onerec", "most popular"]
    assert report["users"] == len(rows) == everyone[0]["users"] and report["legality"] == 1.0
    for row in report["rows"]:
        low, high = row["recall@50_interval"]
        assert 0 <= low <= row["recall@50"] <= high <= 1
    users = {r["slice"]: r["users"] for r in report["rows"] if r["model"] == "onerec"}
    assert users["all"] == sum(n for name, n in users.items() if name.endswith("users"))


def test_a_sample_is_the_same_for_the_same_seed_and_smaller(world, release) -> None:
    a, b, c = (run(world, release, users=5, seed=s) for s in (1, 1, 2))
    assert a == b and a["users"] == 5
    assert a != c


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """Of 200 samples of 100 users, the 95 % interval holds the true mean in 95 % (86 to 100 allowed)."""
    rng = np.random.default_rng(0)
    held = 0
    for i in range(200):
        low, high = bootstrap_interval((rng.random(100) < 0.3).astype(float), seed=i, rounds=300)
        held += low <= 0.3 <= high
    assert 172 <= held <= 200
