"""Labels after a refit, and the model that goes on with them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.tokenizer.carry import CARRY, Carry, carry_code_embeddings
from models.tokenizer.matching import align, keep_labels, match


def test_align_finds_a_rotation_also_into_more_dimensions():
    rng = np.random.default_rng(0)
    old = rng.normal(size=(200, 5))
    turn = np.linalg.qr(rng.normal(size=(8, 5)))[0].T  # 5 orthonormal rows in 8 dimensions
    found = align(old, old @ turn + rng.normal(size=(200, 8)) * 1e-3)
    np.testing.assert_allclose(found, turn, atol=1e-3)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-6)


def test_match_is_the_cheapest_of_all_permutations():
    rng = np.random.default_rng(1)
    new, old = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    cost = np.square(new[:, None] - old).sum(-1)
    best = min(itertools.permutations(range(6)), key=lambda p: sum(cost[i, c] for i, c in enumerate(p)))
    assert match(new, old).tolist() == list(best)


def test_labels_stay_through_a_shuffle_and_surplus_codes_stand_behind():
    rng = np.random.default_rng(2)
    old = rng.normal(size=(20, 4))
    extra = old[[7, 3]] + 0.2
    shuffled = np.concatenate([old + rng.normal(size=old.shape) * 0.01, extra])[rng.permutation(22)]
    (book,), (source,) = keep_labels([shuffled], [old])
    np.testing.assert_allclose(book[:20], old, atol=0.1)
    assert source[:20].tolist() == list(range(20)) and sorted(source[20:].tolist()) == [3, 7]
    with pytest.raises(ValueError, match="a refit to 19 codes from 20 loses names"):
        match(old[:19], old)


def test_code_embeddings_move_and_all_else_stays():
    generator = torch.Generator().manual_seed(0)
    state = {
        f"code.{i}.weight": torch.randn(5, 3, generator=generator) for i in range(2)
    }  # 4 codes and the unknown one
    state |= {"code_bias_LK": torch.randn(2, 4, generator=generator), "head.0.weight": torch.randn(3, 3)}
    state |= {"exp_avg/code.0.weight": torch.randn(5, 3, generator=generator), "step/code.0.weight": torch.tensor(7.0)}
    source = [np.array([2, 0, 1, 3, 3]), np.array([0, 1, 2, 3, 0])]
    carried = carry_code_embeddings(state, source)
    for name, level in (("code.0.weight", 0), ("code.1.weight", 1), ("exp_avg/code.0.weight", 0)):
        assert carried[name].shape == (6, 3)
        for new, old in enumerate(source[level]):
            assert torch.equal(carried[name][new], state[name][old])
        assert torch.equal(carried[name][-1], state[name][-1])
    assert torch.equal(carried["code_bias_LK"][0], state["code_bias_LK"][0][[2, 0, 1, 3, 3]])
    for name in ("head.0.weight", "step/code.0.weight"):
        assert carried[name] is state[name]


def test_a_carry_is_kept_on_disk(tmp_path):
    assert Carry.load(tmp_path / CARRY) is None
    Carry("abc", (np.array([1, 0]), np.array([0, 0]))).save(tmp_path / CARRY)
    again = Carry.load(tmp_path / CARRY)
    assert again is not None and again.parent == "abc" and [s.tolist() for s in again.source] == [[1, 0], [0, 0]]
    assert not again.refit
    Carry("abc", again.source, refit=True).save(tmp_path / CARRY)
    again = Carry.load(tmp_path / CARRY)
    assert again is not None and again.refit and len(again.source) == 2
