"""The session-wise reward: which sessions it learns from, that it learns them, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.reward.reward import RewardInput, RewardSetup, build_rewards
from models.reward.session import SessionReward, sessions_of, train_session
from models.reward.train import labelled, train_reward
from models.training.checkpoint import Tokenizer
from tests.models.conftest import ALL_KNOWN, LIKE, LONG_VIEW, Row, World, write_training_set


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("reward")
    common = {"training_sets": world.training, "tokenizer": world.tokenizer, "seed": 1, "progress": lambda _: None}
    train_reward(**common, previous=None, out=out)
    return out, train_session(**common, reward=out, out=out, session_items=4)


def test_sessions_are_runs_of_known_impressions_with_four_targets(world, tmp_path):
    known = [[i, LONG_VIEW * (i % 2), ALL_KNOWN, 1000 * i, 10_000] for i in range(9)]  # four, four and one left over
    liked = [[i, LIKE, ALL_KNOWN, 9_000, 10_000] for i in range(4)]
    unsure = [[i, 0, ALL_KNOWN - LIKE if i == 2 else ALL_KNOWN, 0, 10_000] for i in range(4)]
    foreign = [[10_000 + i, 0, ALL_KNOWN, 0, 10_000] for i in range(4)]
    rows = [Row(u, shown=shown) for u, shown in enumerate((known, liked, unsure, foreign, known[:3]))]
    tok = Tokenizer.load(world.tokenizer)
    row, item, y = sessions_of(labelled([write_training_set(tmp_path / "rows.parquet", rows)], tok), 4)
    assert row.tolist() == [0, 0, 1]
    ids = tok.catalogue.item_ids[item]
    assert ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    # Watched for 6, 22 and 36 s; the median is 22. Half of the first two are long views, the third is liked.
    assert y.tolist() == [[0, 0.5, 0, 0], [0, 0.5, 0, 0], [1, 0, 0, 1]]


def test_it_learns_which_sessions_are_liked(trained, world):
    """Users like one topic of four: a list of it is worth more to them than one of the next topic."""
    directory, metrics = trained
    assert metrics["last"]["ltr"] < metrics["first"]["ltr"]
    tok = Tokenizer.load(world.tokenizer)
    data = labelled([world.evaluation], tok)
    rows = np.arange(32)
    topic = data.user_id[rows] % 4
    own, other = (tok.catalogue.index(4 * np.arange(4)[None] + t[:, None]) for t in (topic, (topic + 1) % 4))
    lists = torch.from_numpy(np.stack([own, other], 1))
    value = SessionReward.load(directory, tok).eval().score(data.context(rows), lists)
    assert (value[:, 0] > value[:, 1]).float().mean() > 0.9
    assert ((value > 0) & (value < 1)).all()


def test_as_a_reward_every_item_has_its_lists_value(trained, world):
    directory, _ = trained
    tok = Tokenizer.load(world.tokenizer)
    context = labelled([world.evaluation], tok).context(np.arange(3))
    reward = build_rewards({"session": 1.0}, RewardSetup(reward=directory, tokenizer=tok))
    item = torch.arange(24).view(3, 8)
    value = reward(RewardInput(context=context, codes_BGL=torch.zeros(3, 8, 3), item_BG=item))
    lists = SessionReward.load(directory, tok).eval().score(context, item.view(3, 2, 4))
    torch.testing.assert_close(value, lists.repeat_interleave(4, 1))
    with pytest.raises(ValueError, match="no lists of 4"):
        reward(RewardInput(context=context, codes_BGL=torch.zeros(3, 6, 3), item_BG=item[:, :6]))


def test_a_directory_without_one_and_days_without_sessions_are_refused(world, trained, tmp_path):
    tok = Tokenizer.load(world.tokenizer)
    with pytest.raises(ValueError, match="train one with"):
        SessionReward.load(tmp_path, tok)
    rows = write_training_set(tmp_path / "rows.parquet", [Row(1, shown=[[1, 0, ALL_KNOWN, 0, 1]])])
    with pytest.raises(ValueError, match="no sessions to learn from"):
        train_session(
            training_sets=[rows], tokenizer=world.tokenizer, reward=trained[0], out=tmp_path, seed=1, progress=print
        )
