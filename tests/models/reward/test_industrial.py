"""Industrial rules: what they refuse, which items they mark, the sliding window, and the reward they leave."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.onerec.features import Catalogue
from models.reward.industrial import DAY_S, IndustrialReward, Rule, Traits, parse_rule, read_rules
from models.reward.reward import RewardInput

NOW = datetime(2022, 5, 5, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
GOOD = {"name": "farms", "authors": [7], "share": 0.1, "factor": 0.5}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"authors": []}, "marks every item"),
        ({"factor": 0.0}, "factor is 0"),
        ({"factor": 1.0}, "factor is 1"),
        ({"factor": -0.5}, "factor is -0.5"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"share": 0.0}, "share is 0"),
        ({"share": 1.0}, "share is 1"),
        ({"share": 1.2}, "share is 1.2"),
        ({"alpha": 0.5}, r"unknown fields \['alpha'\]"),
        ({"uploaded_within_days": 0}, "uploaded_within_days is 0"),
        ({"popularity_rank_from": 0}, "popularity_rank_from is 0"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_mend(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(GOOD | changes)


def test_rules_come_from_a_file(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([GOOD]))
    assert read_rules(path) == (Rule(name="farms", authors=(7,), share=0.1, factor=0.5),)
    path.write_text(json.dumps(GOOD))
    with pytest.raises(ValueError, match="list of rules"):
        read_rules(path)
    with pytest.raises(ValueError, match=r"fields \['factor'\] are missing"):
        parse_rule({k: v for k, v in GOOD.items() if k != "factor"})


@pytest.fixture
def traits(tmp_path) -> Traits:
    """Catalogue 10, 20, 30, 40, 50; the table holds them in another order, and not item 50."""
    upload = [
        datetime(2022, 5, 4, 12, tzinfo=UTC),
        None,
        datetime(2022, 1, 1, tzinfo=UTC),
        datetime(2022, 5, 1, tzinfo=UTC),
    ]
    table = pa.table(
        {
            "item_id": pa.array([40, 10, 30, 20], pa.int64()),
            "author_id": pa.array([7, 8, 7, None], pa.int64()),
            "tags": pa.array([[1, 2], [2], None, [3]], pa.list_(pa.int32())),
            "upload_time": pa.array(upload, pa.timestamp("ms", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    return Traits.read(tmp_path / "items.parquet", Catalogue(np.array([10, 20, 30, 40, 50])), np.array([30, 99, 10]))


@pytest.mark.parametrize(
    "selectors, expected",
    [
        ({"authors": (7,)}, [30, 40]),
        ({"tags": (2, 3)}, [10, 20, 40]),
        ({"item_ids": (50, 10, 77)}, [10, 50]),
        ({"uploaded_within_days": 1.0}, [40]),
        ({"uploaded_within_days": 5.0}, [20, 40]),
        ({"popularity_rank_from": 1}, [10, 20, 40, 50]),
        ({"popularity_rank_from": 3}, [20, 40, 50]),
        ({"authors": (7,), "tags": (1,)}, [40]),
    ],
)
def test_which_items_a_rule_marks(traits, selectors, expected):
    mark = traits.marked(Rule(name="r", share=0.1, factor=0.5, **selectors), NOW_S)
    assert traits.item_ids[mark].tolist() == expected


def test_a_rule_that_marks_everything_or_nothing_is_refused(traits):
    with pytest.raises(ValueError, match="all 5 items"):
        traits.marked(Rule(name="r", share=0.1, factor=0.5, item_ids=(10, 20, 30, 40, 50)), NOW_S)
    with pytest.raises(ValueError, match="none of 5 items"):
        traits.marked(Rule(name="r", share=0.1, factor=0.5, authors=(99,)), NOW_S)
    with pytest.raises(ValueError, match="none of 5 items"):
        traits.marked(Rule(name="r", share=0.1, factor=0.5, uploaded_within_days=1.0), NOW_S + 900 * DAY_S)


def ones(generated: RewardInput) -> torch.Tensor:
    return torch.ones_like(generated.item_BG, dtype=torch.float32)


def generated(*items: int) -> RewardInput:
    return RewardInput(context={}, codes_BGL=torch.zeros(1, len(items), 3), item_BG=torch.tensor([items]))


LESS = Rule(name="less", item_ids=(0,), share=0.5, factor=0.5)
MORE = Rule(name="more", item_ids=(1,), share=0.5, factor=2.0)
MARKS = [np.array([True, False, False]), np.array([False, True, False])]


def test_down_weighting_above_and_boost_below_the_share():
    reward = IndustrialReward(ones, (LESS, MORE), MARKS, window=100)
    assert reward(generated(0, 1, 2, -1)).tolist() == [[1.0, 1.0, 1.0, 1.0]]  # nothing is known of exposure yet
    reward.observe(torch.tensor([[0, 0, 2, -1]]))
    assert reward.shares == {"less": pytest.approx(2 / 3), "more": 0.0}
    assert reward(generated(0, 1, 2, -1)).tolist() == [[0.5, 2.0, 1.0, 1.0]]
    reward.observe(torch.tensor([[1, 1, 1, 2]]))
    assert reward.shares == {"less": pytest.approx(2 / 7), "more": pytest.approx(3 / 7)}
    assert reward(generated(0, 1, 2)).tolist() == [[1.0, 2.0, 1.0]]
    reward.observe(torch.tensor([[1]]))  # at the share: neither above nor below
    assert reward(generated(0, 1, 2)).tolist() == [[1.0, 1.0, 1.0]]


def test_the_window_slides_as_a_naive_list_does():
    reward, rng, naive = IndustrialReward(ones, (LESS, MORE), MARKS, window=17), np.random.default_rng(0), []
    for _ in range(60):
        items = rng.integers(-1, 3, rng.integers(1, 40))
        reward.observe(torch.from_numpy(items)[None])
        naive = (naive + items[items >= 0].tolist())[-17:]
        assert reward.shares == {
            "less": pytest.approx(naive.count(0) / len(naive)),
            "more": pytest.approx(naive.count(1) / len(naive)),
        }


def test_without_rules_the_reward_is_untouched():
    reward = IndustrialReward(ones, (), [], window=5)
    reward.observe(torch.tensor([[0, 1, 2]]))
    assert reward(generated(0, 1, -1)).tolist() == [[1.0, 1.0, 1.0]]


def test_rules_that_together_silence_everything_are_refused():
    rest = Rule(name="rest", item_ids=(1, 2), share=0.5, factor=0.5)
    with pytest.raises(ValueError, match="together mark every item"):
        IndustrialReward(ones, (LESS, rest), [MARKS[0], ~MARKS[0]], window=5)
    with pytest.raises(ValueError, match="share a name"):
        IndustrialReward(ones, (LESS, LESS), [MARKS[0], MARKS[0]], window=5)
    with pytest.raises(ValueError, match="window is 0"):
        IndustrialReward(ones, (LESS,), MARKS[:1], window=0)
