"""SASRec and the two-tower model of the KuaiRand table learn a planted order and leave out what was seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality import kuairand_trained
from benchmarks.quality.kuairand_trained import (
    DAYS,
    DECAY,
    SHOWN,
    TwoTower,
    evaluate,
    prepare,
    rank,
    sequences_of,
    shown_scores,
    train,
)
from tests.quality.test_quality_kuairand import write_logs


@pytest.fixture(scope="module")
def ring() -> dict[str, np.ndarray]:
    """120 users walk round 60 items from random places; wanted is the next step, seen the walk."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(60, size=120), rng.integers(4, 12, size=120)
    walks = [(s + np.arange(n)) % 60 for s, n in zip(starts, lengths)]
    ends = np.cumsum(lengths)
    return {
        "items": np.concatenate(walks),
        "offsets": np.append(0, ends),
        "num_items": np.array(60),
        "rows": np.arange(120),
        "seen": np.concatenate(walks),
        "seen_ends": ends,
        "wanted": (starts + lengths) % 60,
        "wanted_ends": np.arange(1, 121),
    }


@pytest.mark.parametrize("kind", ["SASRec", "two-tower"])
def test_the_next_step_is_learned(ring: dict[str, np.ndarray], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuairand_trained, "WIDTH", 32)
    monkeypatch.setattr(kuairand_trained, "BATCH", 32)
    monkeypatch.setattr(kuairand_trained, "RATE", 5e-3)
    model, curve = train(kind, ring, epochs=20, seed=1, device=torch.device("cpu"), every=10)
    found = evaluate(rank(model, ring, torch.device("cpu")), ring)
    assert found["recall@10"] > 0.6  # chance is .2
    assert [epoch for epoch, _ in curve] == [10, 20] and curve[-1][1] == found["recall@50"]


def test_the_user_tower_weighs_newer_events_more() -> None:
    model = TwoTower(5).eval()
    items, table = torch.tensor([[5, 1, 2, 3]]), model.table()
    mean = sum(DECAY**k * model.item.weight[i] for k, i in enumerate((3, 2, 1))) / (1 + DECAY + DECAY**2)
    torch.testing.assert_close(model(items, table)[0, -1], mean + model.user_tower(mean))


def test_what_was_seen_is_not_recommended(ring: dict[str, np.ndarray]) -> None:
    model = TwoTower(60).eval()
    asked = ring | {"wanted": ring["items"], "wanted_ends": ring["seen_ends"]}
    assert evaluate(rank(model, asked, torch.device("cpu")), asked)["recall@50"] == 0


def test_everything_shown_is_another_sequence(ring: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """The likes lie at random; only the impressions walk round."""
    monkeypatch.setattr(kuairand_trained, "WIDTH", 32)
    monkeypatch.setattr(kuairand_trained, "BATCH", 32)
    monkeypatch.setattr(kuairand_trained, "RATE", 5e-3)
    likes = np.random.default_rng(1).integers(60, size=len(ring["items"]))
    day = ring | {"items": likes, "shown_items": ring["items"], "shown_offsets": ring["offsets"]}
    model, _ = train(SHOWN, day, epochs=20, seed=1, device=torch.device("cpu"))
    assert evaluate(rank(model, day, torch.device("cpu"), SHOWN), day)["recall@10"] > 0.6
    with pytest.raises(ValueError, match="prepare it again"):
        train(SHOWN, ring, epochs=1, seed=1, device=torch.device("cpu"))


def test_prepared_sequences_are_positives_and_everything_shown(tmp_path: Path) -> None:
    write_logs(tmp_path, time_ms=True)
    prepare(tmp_path, tmp_path / "out")
    day = dict(np.load(tmp_path / "out" / "20220506.npz", allow_pickle=False).items())
    named = {kind: [day["item_id"][s].tolist() for s in sequences_of(kind, day)] for kind in ("SASRec", SHOWN)}
    assert named == {"SASRec": [[10], [15, 12], []], SHOWN: [[10, 11], [15, 12], []]}
    assert [day["item_id"][w] for w in np.split(day["wanted"], day["wanted_ends"][:-1])] == [[12], [10]]


def test_co_occurrence_of_the_shown_is_added_to_the_score(ring: dict[str, np.ndarray]) -> None:
    day = ring | {"shown_items": ring["items"], "shown_offsets": ring["offsets"]}
    scores = shown_scores(day)
    assert scores.shape == (120, 60)
    model = TwoTower(60).eval()
    found = rank(model, day, torch.device("cpu"), "", 1e6 * scores)
    unseen = scores.copy()
    for line, seen in zip(unseen, np.split(day["seen"], day["seen_ends"][:-1])):
        line[seen] = -np.inf
    assert (found[:, 0] == unseen.argmax(1)).all()


def test_a_width_that_is_chosen_with_the_passes_is_trained(
    ring: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = ring | {"shown_items": ring["items"], "shown_offsets": ring["offsets"]}
    day |= {"item_id": np.arange(60), "user_id": np.arange(120)}
    for date in DAYS.values():
        np.savez(tmp_path / f"{date}.npz", **day)
    widths = []

    def recorded(*args, width=None, **more):
        widths.append(width)
        return train(*args, width=width, **more)

    monkeypatch.setattr(kuairand_trained, "train", recorded)
    command = ["trained", "--prepared", str(tmp_path), "--models", "SASRec", "--seeds", "1", "--device", "cpu"]
    command += ["--epochs", "4", "--lists", str(tmp_path / "lists")]
    monkeypatch.setattr(sys, "argv", [*command, "--width", "16", "--choose-only"])
    kuairand_trained.main()
    chosen = json.loads((tmp_path / "lists" / "epochs.json").read_text())["SASRec"]
    assert widths == [16] and (chosen["width"], chosen["epochs"]) == (16, 4)
    assert not list((tmp_path / "lists").glob("*.npz"))
    monkeypatch.setattr(sys, "argv", command)  # goes on with what was chosen
    kuairand_trained.main()
    assert widths == [16, 16] and len(list((tmp_path / "lists").glob("*.npz"))) == 2
