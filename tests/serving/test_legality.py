"""The check behind benchmarks/serving/legality.py: each kind of wrong item is counted as what it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.legality import NONE, Requests
from benchmarks.serving.legality_tally import FAULTS, Tally
from benchmarks.serving.world import World
from models.onerec.features import NUM_FIELDS
from serving.answering import Given
from serving.features import DEGRADED, FULL, NOTHING
from serving.route import Ask, Picked

CODES = {item: (item, 0, 0) for item in range(10)}
ABOUT = {item: (100 + item, 1000 * item) for item in range(10)}  # author, upload time
ASK = Ask(
    user_id=1,
    k=2,
    now_s=10_000,
    exclude=np.array([3]),
    exclude_authors=np.array([104]),
    live=np.zeros((0, NUM_FIELDS), np.int64),
    max_age_s=9_500,
    beam=4,
    rerank=False,
)


@dataclasses.dataclass
class Served:
    release_id: str = "r"


def counted(
    items: list[int], sids: list[tuple[int, ...]] | None = None, release: str = "r", kind: str = FULL
) -> dict[str, int]:
    world = World(users=[1], now_s=0, seen={1: frozenset([2])}, codes={"r": CODES})
    requests = Requests(world, Path("r"), seed=0)
    sids = sids or [CODES[item] for item in items]
    picked = Picked(np.array(items), np.zeros(len(items)), np.array(sids), 0)
    requests.check(ASK, Given(Served(release), picked, NOTHING, kind), {5}, ABOUT)  # type: ignore[arg-type]
    return {name: requests.counts[name] for name in FAULTS if requests.counts[name]}


@pytest.mark.parametrize(
    ("items", "fault"),
    [
        ([2], "seen"),
        ([3], "excluded"),
        ([5], "blocked"),
        ([4], "muted author"),
        ([0], "too old"),
        ([7, 7], "duplicates"),
    ],
)
def test_a_wrong_item_is_counted(items, fault):
    assert counted(items) == {fault: 1}


def test_a_good_answer_has_no_fault_and_other_faults_are_seen():
    assert counted([7, 8]) == {}
    assert counted([7], sids=[(6, 0, 0)]) == {"illegal": 1}
    assert counted([7], release="other") == {"wrong release": 1}
    assert len(NONE) == 0


def test_runs_add_up_and_none_repeats_a_seed(tmp_path):
    about = {"day": "d", "commit": "c", "release": "r", "program": "eager", "items": 10, "users": 3}
    first = Tally(tmp_path / "legality.json")
    run = first.begin(**about)
    run["counts"] = {"requests": 1_000_000, "items": 5, "illegal": 1}
    first.save()
    assert list(tmp_path.iterdir()) == [tmp_path / "legality.json"]
    second = Tally(tmp_path / "legality.json")
    run = second.begin(**about)
    run["counts"] = {"requests": 2, "items": 6}
    assert run["seed"] == 1 and second.counts == {"requests": 1_000_002, "items": 11, "illegal": 1}
    text = second.table("command")
    assert "1,000,002 requests with 11 items" in text and "| illegal | 1 |" in text and "| 1 | d | c | r |" in text
    assert Tally(tmp_path / "legality.json").counts["requests"] == 1_000_000  # what was not saved does not count


def test_answers_without_features_are_no_evidence():
    with pytest.raises(ValueError, match="feature store does not answer"):
        counted([7], kind=DEGRADED)
