"""Gates stop what must not serve; list, show and diff say what is there."""

from __future__ import annotations

import json

import numpy as np
import pytest

from releases import gates
from releases.channels import promote
from releases.describe import diff, diff_text, list_releases, show, show_text
from releases.gates import decide, record_decision
from tests.releases.conftest import publish_small, write_files
from tests.releases.made_up import made_up

SERVED = {"legal": 1.0, "unseen": 1.0}
CLEAN = {"critical_failed": 0}


def metrics(
    recall: float, floor: float = 0.10, production: float | None = None, legality: float = 1.0, noise: float = 0.0
) -> dict:
    rows = [
        {"name": "onerec", "recall@50": recall},
        {"name": "most_popular_all", "recall@50": floor / 2},
        {"name": "most_popular_3d", "recall@50": floor},
    ]
    if production is not None:
        gain = [recall - production - noise, recall - production + noise]
        rows.append({"name": "production", "recall@50": production, "recall@50_gain_interval": gain})
    return {"rows": rows, "legality": legality}


@pytest.mark.parametrize(
    ("evaluation", "passed"),
    [
        (metrics(0.10), True),  # a first release reaches the best floor
        (metrics(0.099), False),
        (metrics(0.095, production=0.10), True),  # later: 90 % of the floor and 95 % of production
        (metrics(0.094, production=0.10), False),
        (metrics(0.094, production=0.10, noise=0.01), True),  # few users: not worse beyond noise
        (metrics(0.084, production=0.10, floor=0.05, noise=0.05), False),
        (metrics(0.089, production=0.05), False),
        (metrics(0.2, legality=0.999), False),
        (metrics(float("nan")), False),
    ],
)
def test_quality_gates(evaluation, passed):
    decision = decide(metrics=evaluation, data_quality=CLEAN, serving_check=SERVED)
    assert decision.passed is passed
    assert bool(decision.failures()) is not passed


def test_data_quality_and_serving_gates():
    good = {"metrics": metrics(0.2), "data_quality": CLEAN, "serving_check": SERVED}
    assert decide(**good).passed
    assert not decide(**good | {"data_quality": {"critical_failed": 1}}).passed
    assert not decide(**good | {"serving_check": SERVED | {"unseen": 0.99}}).passed
    with pytest.raises(ValueError, match="recall@50_gain_interval"):
        decide(**good | {"metrics": {**good["metrics"], "rows": [*good["metrics"]["rows"], {"name": "production"}]}})
    with pytest.raises(ValueError, match="critical_failed"):
        decide(**good | {"data_quality": {}})
    with pytest.raises(ValueError, match="floor"):
        decide(**good | {"metrics": {"rows": [{"name": "onerec", "recall@50": 1.0}], "legality": 1.0}})


def test_list_show_and_diff(store, files, tmp_path):
    old = publish_small(store, files, metrics=metrics(0.20))
    changed = write_files(tmp_path / "next", 1)
    made_up(changed["model/model.safetensors"], "trained further")
    changed["training_state/optimizer.safetensors"] = changed["tokenizer/trie.safetensors"]
    new = publish_small(store, changed, day="2022-05-06", metrics=metrics(0.25), parents=[old], data={"d": "1"})
    judged = decide(metrics=metrics(0.2), data_quality=CLEAN, serving_check=SERVED)
    record_decision(store, old, judged)
    promote(store, old)

    listed = list_releases(store)
    assert [(r["release_id"], r["gate"], r["channels"], r["recall@50"]) for r in listed] == [
        (old, "passed", ["production"], 0.20),
        (new, "open", [], 0.25),
    ]
    difference = diff(store, old, new)
    assert difference["files"] == {
        "added": ["training_state/optimizer.safetensors"],
        "removed": [],
        "changed": ["model/model.safetensors"],
    }
    assert difference["metrics"] == {"rows.onerec.recall@50": {"old": 0.20, "new": 0.25}}
    assert difference["data"]["added"] == ["d"] and difference["other"]["parents"]["new"] == [old]
    assert "recall@50: 0.2 -> 0.25  +0.05" in diff_text(difference)
    assert diff_text(diff(store, old, old)).endswith("no difference")
    text = show_text(show(store, old))
    assert "channels  production" in text and "gate      passed legality" in text
    with pytest.raises(ValueError, match="no release"):
        show(store, "2022-05-05-000000000000")


def sliced(recall: float, reference: float, gain: list[float], users: int = 500) -> dict:
    row = {"name": "new items", "users": users, "recall@50": recall, "gain_interval": gain}
    return metrics(0.2) | {"slices": [row | {"reference_name": "production", "reference": reference}]}


@pytest.mark.parametrize(
    ("evaluation", "passed"),
    [
        (sliced(0.079, 0.10, [-0.03, -0.01]), False),  # worse beyond noise, and below 80 %
        (sliced(0.081, 0.10, [-0.03, -0.01]), True),
        (sliced(0.050, 0.10, [-0.09, 0.01]), True),  # noise
        (sliced(0.050, 0.10, [-0.06, -0.04], users=99), True),  # too few to judge, but recorded
    ],
)
def test_slice_floors(evaluation, passed):
    decision = decide(metrics=evaluation, data_quality=CLEAN, serving_check=SERVED)
    assert decision.passed is passed
    check = next(c for c in decision.checks if c.name == "recall@50 of new items")
    assert check.value == evaluation["slices"][0]["recall@50"] and check.note


def test_tokenizer_latency_degraded_and_parity_gates():
    good = {"metrics": metrics(0.2), "data_quality": CLEAN, "serving_check": SERVED}
    gate = {"gate": "changed", "value": 0.0, "side": "at most", "limit": 0.0, "passed": True}
    judged = decide(**good, tokenizer={"gates": [gate, gate | {"gate": "churn", "value": None, "passed": None}]})
    assert judged.passed and [c.name for c in judged.checks if "tokenizer" in c.name] == ["tokenizer changed"]
    assert not decide(**good, tokenizer={"gates": [gate | {"value": 0.1, "passed": False}]}).passed
    assert not decide(**good | {"serving_check": SERVED | {"latency_ms": {"p99": 5001.0}}}).passed
    assert not decide(**good | {"serving_check": SERVED | {"degraded": 1}}).passed


def test_parity_as_the_export_writes_it(tmp_path):
    """The verdict comes from the real function, through the file; the limits of both rooms are the same."""
    parity = pytest.importorskip("serving.export.parity")
    assert (gates.PARITY_TOP1, gates.PARITY_OVERLAP) == (parity.TOP1, parity.OVERLAP)
    good = {"metrics": metrics(0.2), "data_quality": CLEAN, "serving_check": SERVED}
    ids, scores = np.arange(40).reshape(2, 20), np.tile(-np.arange(20.0, dtype=np.float32), (2, 1))
    for other, whole in ((ids, True), (ids[:, ::-1], False)):
        verdict = parity.compare((ids, scores), (other, scores))
        (tmp_path / "parity.json").write_text(json.dumps({"cpu": verdict}))
        decision = decide(**good, parity=json.loads((tmp_path / "parity.json").read_text()))
        found = [c for c in decision.checks if "exported program for cpu" in c.name]
        # One that is not equal is not in the release: recorded, and no reason to stop it.
        assert decision.passed and len(found) == 2 and verdict["passed"] is whole
        assert [bool(c.note) for c in found] == [not whole] * 2
    # A file that claims to have passed is not taken at its word.
    assert not decide(**good, parity={"cpu": {"top1": 0.5, "overlap": 1.0, "passed": True}}).passed
    with pytest.raises(ValueError, match="parity of cpu hold no 'top1'"):
        decide(**good, parity={"cpu": {}})
    assert decide(**good, parity={}).passed  # no compiler where it was published: nothing was exported
