"""The reward type and its registry, the format reward's selection and advantage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.reward.format import format_advantage, random_k, selection, top_k
from models.reward.pscore import PScore, PScoreConfig
from models.reward.reward import REGISTRY, RewardInput, RewardSetup, build_rewards
from tests.models.conftest import random_batch, small_model


@pytest.fixture
def setup(tmp_path) -> tuple[RewardSetup, PScore, RewardInput]:
    model, tok = small_model()
    p_score = PScore(PScoreConfig(codebook_size=4, items=20, static_features=3), torch.from_numpy(tok.sid_NL)).eval()
    p_score.save(tmp_path)
    item = torch.tensor([[3, -1, 19], [0, 1, -1]])
    codes = model.sid_NL[item.clamp_min(0)]
    generated = RewardInput(context=random_batch(model, [(3, 2, 1), (0, 0, 0)]), codes_BGL=codes, item_BG=item)
    return RewardSetup(reward=tmp_path, tokenizer=tok), p_score, generated


def test_the_registered_p_score_is_the_reward_models(setup):
    setup, p_score, generated = setup
    value = build_rewards({"p_score": 1.0}, setup)(generated)
    expected = p_score.score(generated.context, generated.item_BG.clamp_min(0))
    torch.testing.assert_close(value, expected)


def test_rewards_are_summed_with_their_weights(setup):
    setup, p_score, generated = setup
    value = build_rewards({"p_score": 0.5, "format": 2.0}, setup)(generated)
    expected = 0.5 * p_score.score(generated.context, generated.item_BG.clamp_min(0)) + 2.0 * (generated.item_BG >= 0)
    torch.testing.assert_close(value, expected)


def test_a_new_reward_is_one_builder_and_one_line(setup, monkeypatch):
    setup, _, generated = setup
    monkeypatch.setitem(REGISTRY, "index", f"{__name__}:index_reward")
    assert build_rewards({"index": 2.0}, setup)(generated).tolist() == (2 * generated.item_BG).tolist()


def index_reward(setup: RewardSetup):
    return lambda generated: generated.item_BG.float()


@pytest.mark.parametrize("weights", [{"clicks": 1.0}, {}, {"p_score": 0.0}, {"p_score": float("nan")}])
def test_a_wrong_configuration_is_refused_by_name(setup, weights):
    with pytest.raises(ValueError, match=r"clicks|no reward|p_score"):
        build_rewards(weights, setup[0])


def test_format_advantage_is_one_or_nothing():
    item = torch.tensor([[5, -1], [-1, 0]])
    generated = RewardInput(context={}, codes_BGL=torch.zeros(2, 2, 3), item_BG=item)
    assert format_advantage(generated).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_random_k_takes_every_sample_equally_often():
    logp, generator = torch.linspace(-9, 0, 8).expand(500, 8), torch.Generator().manual_seed(0)
    chosen = random_k(logp, 3, generator)
    assert chosen.shape == (500, 3) and all(len(set(row)) == 3 for row in chosen.tolist())
    counts = np.bincount(chosen.flatten().numpy(), minlength=8)
    assert (np.abs(counts - 500 * 3 / 8) < 5 * np.sqrt(500 * 3 / 8)).all()


def test_top_k_takes_the_most_probable():
    logp = torch.tensor([[-3.0, -1.0, -2.0], [0.0, -5.0, -4.0]])
    assert top_k(logp, 2, torch.Generator()).tolist() == [[1, 2], [0, 2]]
    assert top_k(logp, 9, torch.Generator()).shape == (2, 3)


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="'best'"):
        selection("best")
