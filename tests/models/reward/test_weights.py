"""Pantheon's rule on a problem whose answer is known, and on a tiny source."""

from __future__ import annotations

import itertools
import json

import pytest

from models.onerec.features import LABELS
from models.reward.quality import Estimate
from models.reward.train import TEST, fold_of, labelled
from models.reward.weights import SourceTrials, Trial, main, search_weights
from models.training.checkpoint import Tokenizer
from tests.models.conftest import LIKE, simulate_days

NAMES = ("a", "b", "c")
QUIET = {"progress": lambda _: None}


def shared_budget(need: dict[str, float], half: float = 0.01):
    """Objectives compete: each wants its share of the weights to reach `need`, and falls by what is missing."""

    def measure(weights: dict[str, float]) -> dict[str, Estimate]:
        total = sum(weights.values())
        gap = {n: min(weights[n] / total - need[n], 0.02) for n in weights}
        return {n: Estimate(g, g - half, g + half) for n, g in gap.items()}

    return measure


def test_it_raises_the_objective_that_lost_most_by_a_tenth_of_1_over_n_until_none_falls():
    base, trials = search_weights(shared_budget({"a": 0.5, "b": 0.2, "c": 0.2}), NAMES, budget=100, **QUIET)
    assert not base.fallen and base is trials[-1] and len(trials) < 100
    assert all(w > 0 for t in trials for w in t.weights.values())
    assert trials[0].weights == {n: pytest.approx(1 / 3) for n in NAMES}
    for before, after in itertools.pairwise(trials):
        raised = {n: after.weights[n] - before.weights[n] for n in NAMES if after.weights[n] != before.weights[n]}
        worst = min(before.gaps, key=lambda n: before.gaps[n].value)
        assert raised == {worst: pytest.approx(0.1 / 3)}
    assert base.weights["a"] / sum(base.weights.values()) > 0.48


def test_a_gap_within_its_interval_is_no_fall():
    base, trials = search_weights(shared_budget({"a": 0.5, "b": 0.2, "c": 0.2}, half=0.3), NAMES, budget=9, **QUIET)
    assert len(trials) == 1 and base.gaps["a"].value < 0 and not base.fallen


def test_when_the_budget_is_used_the_base_is_the_best_trial_not_the_last():
    base, trials = search_weights(shared_budget(dict.fromkeys(NAMES, 0.6)), NAMES, budget=20, **QUIET)
    assert len(trials) == 20 and base.order == min(t.order for t in trials) and base is not trials[-1]
    only = {"a": Estimate(-0.1, -0.2, -0.05), "b": Estimate(0.0, -0.1, 0.1)}
    assert Trial({"a": 1, "b": 1}, only).order < Trial({"a": 1, "b": 1}, only | {"b": only["a"]}).order


@pytest.mark.parametrize(
    "change, word",
    [({"budget": 0}, "at least one"), ({"step": 0.0}, "positive"), ({"start": dict.fromkeys(NAMES, 0)}, "positive")],
)
def test_a_weight_that_would_vanish_and_an_empty_budget_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        search_weights(shared_budget(dict.fromkeys(NAMES, 0.1)), NAMES, **({"budget": 3} | change), **QUIET)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    return simulate_days(tmp_path_factory.mktemp("weights"), users=200, items=48, days=2, shown=8, seed=3)


def test_on_a_source_it_repeats_by_seed_and_leaves_out_objectives_nobody_shows(world, days, tmp_path):
    folder = days[0].parent.parent
    for name in ("a", "b"):
        arguments = {
            "training-sets": folder,
            "tokenizer": world.tokenizer,
            "items": world.items,
            "out": tmp_path / name,
        }
        arguments |= {"budget": 2, "seed": 5}
        main([word for key, value in arguments.items() for word in (f"--{key}", str(value))])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = json.loads((tmp_path / "a").read_text())
    assert set(found["weights"]) == set(LABELS) and min(found["weights"].values()) > 0
    assert set(found["gaps"]) <= {"click", "long_view", "like", "hate"} and "like" in found["gaps"]
    assert 1 <= len(found["trials"]) <= 2


def test_an_objective_with_a_handful_of_rows_is_not_judged(world, days):
    tok, said = Tokenizer.load(world.tokenizer), []
    data = labelled(days, tok)
    shown = {"seed": 1, "epochs": 1, "progress": said.append}
    counts = SourceTrials(data, tok, None, **shown)
    held = counts.validation
    likes = sum(int(((data.shown.row(i)[:, 1] & LIKE) > 0).sum()) for i in held)
    assert f"'like': {likes}" in said[0] and set(counts.reference) <= {"click", "long_view", "like", "hate"}
    assert set(SourceTrials(data, tok, None, fewest=likes, **shown).reference) == {"click", "long_view", "like"}
    assert SourceTrials(data, tok, None, fewest=10_000, **shown)(dict.fromkeys(LABELS, 1.0)) == {}


def test_searching_never_looks_at_test_users(world, days):
    tok = Tokenizer.load(world.tokenizer)
    data = labelled(days, tok)
    trials = SourceTrials(data, tok, None, seed=1, epochs=1, **QUIET)
    users = data.user_id[[*trials.train, *trials.validation]]
    assert len(users) and not set(fold_of(users).tolist()) & set(TEST)
    assert not set(data.user_id[trials.train].tolist()) & set(data.user_id[trials.validation].tolist())
