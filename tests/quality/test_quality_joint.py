"""The joint score: candidates hold what each part proposes, and each score is that part's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.quality import joint
from benchmarks.quality.first_day import first_day
from benchmarks.quality.first_day_step import Recipe
from benchmarks.quality.joint import GRID, Scored, candidates, seen_matrix, shown_weights
from models.evaluation.evaluate import Ranker, held_out
from models.onerec.beam_search import beam_search
from models.onerec.features import Catalogue
from models.training.checkpoint import Tokenizer
from tests.models.conftest import world  # noqa: F401  (the synthetic source of the models' tests)


@pytest.fixture
def ranker(world, tmp_path) -> Ranker:  # noqa: F811
    recipe = Recipe(epochs=2, batch=16, d_model=32)
    first_day(
        training_sets=list(world.training), tokenizer=world.tokenizer, out=tmp_path, recipe=recipe, seed=1, device="cpu"
    )
    rows, _, _ = held_out(world.evaluation)
    return Ranker(world.evaluation, Tokenizer.load(world.tokenizer), tmp_path, rows)


def test_scores_are_those_of_beam_head_and_co_occurrence(ranker: Ranker, world) -> None:  # noqa: F811
    _, wanted, seen = held_out(world.evaluation)
    catalogue = ranker.tok.catalogue
    weights = shown_weights(list(world.training), catalogue, 5.0)
    assert weights.shape == (48, 48) and not weights.diagonal().any()
    found = candidates(ranker, seen, weights, width=8)
    context = ranker.data.context(ranker.rows)
    with torch.no_grad():
        z, mask = ranker.model.encode(context)
        codes, logp = beam_search(ranker.model, z, mask, 8, ranker.tok.trie)
        head = torch.log_softmax(ranker.model.item_logits(z), -1).numpy()
    beam = ranker.tok.trie.lookup(codes).numpy()
    shown = seen_matrix(seen, catalogue) @ weights
    for u, (ids, before) in enumerate(zip(found.item_UC, seen)):
        real = ids[ids >= 0]
        assert len(real) == len(set(real)) and not set(real) & set(before)
        at = catalogue.index(real)
        np.testing.assert_allclose(found.head_UC[u][ids >= 0], head[u][at], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.shown_UC[u][ids >= 0], shown[u][at], rtol=1e-4, atol=1e-5)
        token = dict(zip(at.tolist(), found.codes_UC[u][ids >= 0].tolist()))
        for index, p in zip(beam[u].tolist(), logp[u].tolist()):
            if catalogue.item_ids[index] not in before:
                assert token[index] == pytest.approx(p, abs=1e-3)
        proposed = np.where(
            np.isin(np.arange(48), catalogue.index(before)), -np.inf, head[u] + joint.PROPOSE * shown[u]
        )
        assert catalogue.item_ids[proposed.argmax()] in real
    weights_of, recall = found.best_weights(wanted)
    assert weights_of in GRID and 0 < recall <= 1


def test_lists_follow_the_weights_and_hold_no_gaps() -> None:
    row = np.array([[7, -1, 9, 8]])
    scored = Scored(
        item_UC=row,
        codes_UC=np.array([[-1.0, 0.0, -2.0, -3.0]]),
        head_UC=np.array([[-2.0, 0.0, -1.5, -9.0]]),
        shown_UC=np.array([[0.0, 5.0, 0.0, 1.0]]),
    )
    assert scored.rank((0.0, 0.0))[0, :4].tolist() == [7, 9, 8, -1]
    assert scored.rank((4.0, 0.0))[0, :4].tolist() == [9, 7, 8, -1]
    assert scored.rank((1.0, 24.0))[0, :4].tolist() == [8, 7, 9, -1]
    assert scored.rank((0.0, 0.0)).shape == (1, joint.TOP)


def test_unknown_items_are_left_out() -> None:
    found = seen_matrix([np.array([30, 99, 30]), np.array([], np.int64)], Catalogue(np.array([10, 30])))
    assert found.toarray().tolist() == [[0, 1], [0, 0]]
