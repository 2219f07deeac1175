"""The evaluation of a day: who counts, what a hit is, what never appears, and the rows of the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.evaluation.evaluate import Ranker, evaluate, held_out
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.ranking import rank_unseen
from models.reward.pscore import PScore, PScoreConfig
from models.tokenizer.refresh import refresh_tokenizer
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer, save_model
from models.training.data import TrainingSet
from models.training.pretrain import PretrainConfig, pretrain
from tests.models.conftest import CLICK, LIKE, LONG_VIEW, Row, World, small_model, write_items, write_training_set


def _untrained(tokenizer: Tokenizer, out: Path, seed: int) -> Path:
    """A model with visible item biases, so that every model ranks differently."""
    torch.manual_seed(seed)
    config = OneRecConfig(
        codebook_size=16, items=len(tokenizer.catalogue), static_features=3, d_model=16, heads=2, ffn_dim=16
    )
    model = OneRec(config, torch.from_numpy(tokenizer.sid_NL))
    with torch.no_grad():
        model.item_bias_N.normal_()
    out.mkdir(parents=True)
    save_model(model, out)
    return out


@pytest.fixture(scope="module")
def models(world, tmp_path_factory) -> dict[str, Path]:
    root, tokenizer = tmp_path_factory.mktemp("models"), Tokenizer.load(world.tokenizer)
    (root / "reward").mkdir()
    config = PScoreConfig(codebook_size=16, items=48, static_features=3)
    PScore(config, torch.from_numpy(tokenizer.sid_NL)).save(root / "reward")
    return {
        "model": _untrained(tokenizer, root / "model", 1),
        "pretrained": _untrained(tokenizer, root / "pretrained", 2),
        "reward": root / "reward",
    }


def _evaluate(world: World, models: dict[str, Path], out: Path, **changes) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    arguments = {
        "evaluation_set": world.evaluation,
        "training_sets": world.training,
        "tokenizer": world.tokenizer,
        "production": None,
        "seed": 4,
        "progress": lambda _: None,
    }
    return evaluate(out=out, **(arguments | models | changes))


def test_report_rows_and_file(world, models, tmp_path):
    report = _evaluate(world, models, tmp_path)
    names = [row["name"] for row in report["rows"]]
    assert names == ["onerec", "onerec_pretrained", "most_popular_all", "most_popular_3d"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    rows, relevant, _ = held_out(world.evaluation)
    assert report["users"] == len(rows) == len(relevant)
    for row in report["rows"]:
        low, high = row["recall@50_interval"]
        assert 0 <= low <= row["recall@50"] <= high <= 1
        assert row["recall@10"] <= row["recall@50"] <= row["recall@100"]
    assert 0 < report["p_score_top10"] < 1 and 0 <= report["unconstrained_legality"] <= 1
    assert report["legality"] == 1.0
    _, _, seen = held_out(world.evaluation)
    assert report["filled"] == pytest.approx(np.mean([48 - len(np.unique(s)) for s in seen]) / 100)
    again = _evaluate(world, models, tmp_path)
    assert again == report


def test_who_counts_and_what_is_relevant(tmp_path):
    rows = [
        Row(1, seen=[5], shown=[[5, LIKE, 255, 1, 1], [6, LONG_VIEW, 255, 1, 1], [6, LIKE, 255, 1, 1]]),
        Row(2, seen=[], shown=[[5, CLICK, 255, 1, 1]]),  # no positive
        Row(3, seen=[5, 6], shown=[[5, LIKE, 255, 1, 1]]),  # nothing new
        Row(4, seen=[], shown=[]),
        Row(5, seen=[9], shown=[[0, LIKE, 255, 1, 1], [7, 0, 255, 1, 1]]),
    ]
    index, relevant, seen = held_out(write_training_set(tmp_path / "e.parquet", rows))
    assert index.tolist() == [0, 4]
    assert [r.tolist() for r in relevant] == [[6], [0]]
    assert [s.tolist() for s in seen] == [[5], [9]]
    with pytest.raises(ValueError, match="no user has a positive item"):
        held_out(write_training_set(tmp_path / "none.parquet", rows[1:4]))


def test_seen_items_never_appear_and_all_others_do(world, models):
    rows, _, seen = held_out(world.evaluation)
    ranker = Ranker(world.evaluation, Tokenizer.load(world.tokenizer), models["model"], rows)
    ranked, legality = ranker.rank(seen)
    assert legality == 1.0 and ranked.shape == (len(rows), 100)
    for row, items in zip(ranked, seen):
        placed = row[row >= 0].tolist()
        assert sorted(placed) == sorted(set(range(48)) - set(items.tolist()))  # 48 items: the beam holds all
        assert (row[len(placed) :] == -1).all()


def test_a_user_who_has_seen_much_gets_a_full_list(tmp_path):
    """The first 160 items of the ranking are all seen: the list goes on behind them, as in serving."""
    model, tokenizer = small_model(items=400, codebook_size=8)
    save_model(model, tmp_path)
    path = write_training_set(tmp_path / "e.parquet", [Row(1), Row(2)])
    ranker = Ranker(path, tokenizer, tmp_path, np.array([0, 1]))
    nothing = np.empty(0, np.int64)
    (whole,) = rank_unseen(ranker.model, ranker.data.context(np.array([0])), tokenizer.trie, [nothing], 400, 400)
    in_order = tokenizer.catalogue.item_ids[whole[0]]
    ranked, legality = ranker.rank([in_order[:160], nothing])
    assert ranked[0].tolist() == in_order[160:260].tolist()
    assert (ranked[1] >= 0).all() and legality == 1.0


def test_a_place_whose_codes_are_not_its_items_is_illegal(world, models):
    """A trie that is one row off still calls every path an item; the SID table does not."""
    rows, _, seen = held_out(world.evaluation)
    tokenizer = Tokenizer.load(world.tokenizer)
    ranker = Ranker(world.evaluation, tokenizer, models["model"], rows)
    sid = tokenizer.sid_NL.copy()
    sid[[0, 1]] = sid[[1, 0]]
    ranker.tok = dataclasses.replace(tokenizer, trie=Trie.build(sid, 16))
    ranked, legality = ranker.rank(seen)
    assert legality == pytest.approx(1 - (ranked[ranked >= 0] < 2).mean()) and legality < 1


def test_a_hit_counts_for_the_exact_item_only(world, models, tmp_path):
    """A user's only relevant item stands at a known rank; its nearest neighbour in the code tree is no hit."""
    tokenizer = Tokenizer.load(world.tokenizer)
    sid = tokenizer.sid_NL
    target, neighbour = next(
        (a, b) for a in range(48) for b in range(48) if a != b and (sid[a, :2] == sid[b, :2]).all()
    )
    everything = np.arange(48)
    ids = tokenizer.catalogue.item_ids

    def recall(seen: np.ndarray, relevant: int) -> float:
        path = write_training_set(
            tmp_path / "e.parquet", [Row(1, seen=ids[seen], shown=[[ids[relevant], LIKE, 255, 1, 1]])]
        )
        return _evaluate(world, models, tmp_path, evaluation_set=path)["rows"][0]["recall@10"]

    only_target = np.setdiff1d(everything, [target])
    assert recall(only_target, target) == 1.0
    other = np.setdiff1d(everything, [target, neighbour])
    path = write_training_set(tmp_path / "e.parquet", [Row(1, seen=[*ids[other], ids[target]])])
    ranker = Ranker(path, tokenizer, models["model"], np.array([0]))
    assert ranker.rank([np.array([*ids[other], ids[target]])])[0][0, 0] == ids[neighbour]
    path = write_training_set(
        tmp_path / "e.parquet", [Row(1, seen=[*ids[other]], shown=[[1000, LIKE, 255, 1, 1]])]
    )  # an item no tokenizer knows: nothing can hit it, and it still counts
    report = _evaluate(world, models, tmp_path, evaluation_set=path)
    assert report["users"] == 1 and {row["recall@100"] for row in report["rows"]} == {0.0}


def test_floors_use_all_days_and_the_last_three(world, models, tmp_path):
    days = []
    for day, item in enumerate([1, 1, 2, 2, 2]):
        rows = [Row(u, shown=[[item if day > 1 else 1, LIKE, 255, 1, 1]]) for u in range(9 if day < 2 else 3)]
        days.append(write_training_set(tmp_path / f"dt=2022-05-0{day + 1}" / "p.parquet", rows))
    evaluation = write_training_set(tmp_path / "e.parquet", [Row(1, shown=[[1, LIKE, 255, 1, 1]])])
    report = _evaluate(world, models, tmp_path / "out", training_sets=days[::-1], evaluation_set=evaluation)
    ndcg = {row["name"]: row["ndcg@10"] for row in report["rows"]}
    assert ndcg["most_popular_all"] == 1.0  # item 1 has 18 positives, item 2 has 9
    assert ndcg["most_popular_3d"] == 0.0  # item 1 was not liked in the last three days


def test_an_alignment_that_was_thrown_away_is_measured_once(world, models, tmp_path):
    said: list[str] = []
    report = _evaluate(world, models | {"pretrained": models["model"]}, tmp_path, progress=said.append)
    assert sum("ranking with" in line for line in said) == 1
    first, second = report["rows"][:2]
    assert second["name"] == "onerec_pretrained"
    assert {**first, "name": ""} == {**second, "name": ""}


def test_production_is_ranked_with_its_own_tokenizer(world, models, tmp_path):
    """The release in production knows 20 items; it can only hit those."""
    release = tmp_path / "release"
    (release / "tokenizer").mkdir(parents=True)
    refresh_tokenizer(
        items=write_items(tmp_path / "items.parquet", list(range(20))),
        training_sets=world.training,
        previous=None,
        out=release / "tokenizer",
        seed=9,
        progress=lambda _: None,
    )
    _untrained(Tokenizer.load(release / "tokenizer"), release / "model", 3)
    report = _evaluate(world, models, tmp_path / "out", production=release)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows)[:3] == ["onerec", "onerec_pretrained", "production"]
    _, relevant, _ = held_out(world.evaluation)
    expected = np.mean([(r < 20).mean() for r in relevant])
    assert rows["production"]["recall@100"] == pytest.approx(expected)
    low, high = rows["production"]["recall@50_gain_interval"]
    assert low <= rows["onerec"]["recall@50"] - rows["production"]["recall@50"] <= high
    assert rows["onerec"]["recall@100"] == 1.0  # the catalogue is smaller than the list


def test_a_trained_model_beats_the_floor_on_a_source_with_structure(world, models, tmp_path):
    (tmp_path / "trained").mkdir()
    pretrain(
        training_sets=world.training,
        tokenizer=world.tokenizer,
        previous=None,
        out=tmp_path / "trained",
        seed=1,
        progress=lambda _: None,
        config=PretrainConfig(min_steps=40, batch_size=16),
    )
    trained = {"model": tmp_path / "trained", "pretrained": tmp_path / "trained"}
    report = _evaluate(world, models | trained, tmp_path / "out")
    ndcg = {row["name"]: row["ndcg@10"] for row in report["rows"]}
    assert ndcg["onerec"] > 1.2 * ndcg["most_popular_all"]


def test_context_of_the_ranker_is_the_evaluation_row(world, models):
    tokenizer = Tokenizer.load(world.tokenizer)
    rows = np.array([3, 1])
    ranker = Ranker(world.evaluation, tokenizer, models["model"], rows)
    data = TrainingSet([world.evaluation], tokenizer.catalogue, ranker.model.config)
    one, two = ranker.data.context(rows), data.context(rows)
    assert all(torch.equal(one[k], two[k]) for k in two)
