"""Every gate at its limit, and the refusal that names it."""

from __future__ import annotations

import math

import pytest

from models.tokenizer.gates import Gates, TokenizerRefused, judge, require

GOOD = {
    "items": 1000,
    "refit": True,
    "reconstruction_loss": 0.2,
    "utilization": [1.0, 1.0, 0.95],
    "entropy": [4.0, 3.9, 3.8],
    "max_entropy": math.log(64),
    "reachable": 1.0,
    "collision_rate_before": 0.3,
    "collision_rate_after": 0.0,
    "moved_ids": 0,
    "churn": [0.1, 0.2, 0.3],
    "neighbours": {"tags": {"lift": 3.0}, "viewers": {"lift": None}},
}
BAD = {
    "reconstruction": {"reconstruction_loss": 0.95},
    "utilization": {"utilization": [1.0, 0.85, 1.0]},
    "entropy": {"entropy": [4.0, 1.6, 4.0]},
    "collision_before": {"collision_rate_before": 0.95},
    "collision_after": {"collision_rate_after": 0.001},
    "changed": {"moved_ids": 1},
    "churn": {"churn": [0.95, 0.95, 0.95]},
    "neighbours": {"neighbours": {"tags": {"lift": 0.8}, "viewers": {"lift": 0.9}}},
}


def test_a_good_tokenizer_passes_every_gate():
    results = judge(GOOD)
    assert {r["gate"] for r in results} == set(BAD) and all(r["passed"] for r in results)
    require(results)


@pytest.mark.parametrize("gate", BAD)
def test_each_gate_refuses_by_name_and_alone(gate):
    results = judge(GOOD | BAD[gate])
    assert [r["gate"] for r in results if not r["passed"]] == [gate]
    with pytest.raises(TokenizerRefused, match=rf"refused: {gate} is .*, at (most|least) .* is asked for"):
        require(results)


@pytest.mark.parametrize("gate", BAD)
def test_each_limit_can_be_set(gate):
    wide = {"utilization": 0.8, "entropy": 0.3, "neighbours": 0.5}.get(gate, 1.0)
    results = judge(GOOD | BAD[gate], Gates(**{gate: wide}))
    assert [r["passed"] for r in results if r["gate"] == gate] == [True]
    require(results)


def test_a_small_catalogue_is_judged_by_the_exact_gates_only():
    everything = GOOD | {k: v for bad in BAD.values() for k, v in bad.items()} | {"items": 50}
    assert {r["gate"] for r in judge(everything) if r["passed"] is not None} == {"collision_after", "changed"}


def test_what_so_few_items_can_reach_is_the_measure():
    """128 items on 256 codes use half of them and have the entropy of 128."""
    half = GOOD | {"items": 128, "utilization": [0.48] * 3, "reachable": 0.5, "max_entropy": math.log(256)}
    results = {r["gate"]: r for r in judge(half | {"entropy": [math.log(120)] * 3})}
    assert results["utilization"]["value"] == 0.96
    assert results["entropy"]["value"] == pytest.approx(math.log(120) / math.log(128))


def test_a_day_without_a_fit_is_not_judged_by_its_few_new_items():
    day = GOOD | BAD["reconstruction"] | BAD["collision_before"] | {"refit": False}
    for report in (day, day | {"reconstruction_loss": None}):
        results = judge(report)
        unjudged = {r["gate"] for r in results if r["passed"] is None}
        assert {"reconstruction", "collision_before"} <= unjudged and not [r for r in results if r["passed"] is False]
        require(results)
