"""The loaded model of a release: exclusions, the widening beam, agreement with batch ranking, refused input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.inference import MAX_BEAM, Recommender
from models.onerec.features import encode_events
from models.onerec.ranking import rank_items
from models.reward.pscore import PScore, PScoreConfig
from tests.models.conftest import small_model

STATIC = np.array([1, 2, 3])
NOW = 1_000_000


def _events(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.integers(0, 200, n), *(rng.integers(1, 900_000, n) for _ in range(5)), rng.integers(0, 256, n)], 1
    )


def _ask(recommender: Recommender, **changes):
    request = {
        "static": STATIC,
        "short": _events(9),
        "positive": _events(4),
        "lifelong": _events(0),
        "now_s": NOW,
        "exclude": np.empty(0, np.int64),
        "k": 5,
        "beam": 6,
    }
    return recommender.recommend(**(request | changes))


@pytest.fixture
def recommender() -> Recommender:
    return Recommender(*small_model(items=40))


def test_equals_rank_items_on_the_newest_events(recommender):
    got = _ask(recommender, k=40, beam=40)
    catalogue = recommender.tokenizer.catalogue
    batch = {"static": torch.from_numpy(STATIC)[None]}
    for name, events in (("short", _events(9)[-5:]), ("positive", _events(4)), ("lifelong", _events(0))):
        encoded = encode_events(events, np.full(len(events), NOW), catalogue, 32, 16)
        batch[name] = torch.from_numpy(encoded)[None]
        batch[f"{name}_mask"] = torch.ones(1, len(events), dtype=torch.bool)
    item, score, codes = (t[0].numpy() for t in rank_items(recommender.model, batch, recommender.tokenizer.trie, 40))
    real = np.isfinite(score)
    assert real.sum() == 40
    assert got.item_ids.tolist() == (item[real] * 10).tolist()
    np.testing.assert_allclose(got.scores, score[real], rtol=1e-6)
    assert np.array_equal(got.sids, codes[real])


def test_types_order_and_round_trip(recommender):
    got = _ask(recommender)
    assert [a.dtype for a in dataclasses.astuple(got)] == [np.int64, np.float32, np.int32]
    assert len(got.item_ids) == 5 and got.scores.tolist() == sorted(got.scores.tolist(), reverse=True)
    index = recommender.tokenizer.trie.lookup(torch.from_numpy(got.sids))
    assert recommender.tokenizer.catalogue.item_ids[index.numpy()].tolist() == got.item_ids.tolist()


def test_excluded_items_never_come_and_the_beam_widens_for_them(recommender):
    everything = _ask(recommender, k=40, beam=40).item_ids
    got = _ask(recommender, exclude=everything[:30], k=5, beam=5)
    assert got.item_ids.tolist() == everything[30:35].tolist()


def test_fewer_items_than_asked_when_nothing_is_left(recommender):
    everything = _ask(recommender, k=40, beam=40).item_ids
    assert _ask(recommender, exclude=everything[:37], k=5).item_ids.tolist() == everything[37:].tolist()
    assert len(_ask(recommender, exclude=everything).item_ids) == 0


def test_the_reward_model_selects_from_the_whole_beam(recommender):
    """Best of K: the k items with the highest P-Score of all that a beam of width K generates, less the excluded."""
    model, tokenizer = recommender.model, recommender.tokenizer
    torch.manual_seed(5)
    p_score = PScore(PScoreConfig(codebook_size=4, items=40, static_features=3), model.sid_NL[:-1]).eval()
    selecting = Recommender(model, tokenizer, p_score)
    plain = _ask(recommender, k=20, beam=20)
    unwanted = plain.item_ids[:2]
    got = _ask(selecting, k=5, beam=20, exclude=unwanted)
    batch = {"static": torch.from_numpy(STATIC)[None]}
    for name, events in (("short", _events(9)[-5:]), ("positive", _events(4)), ("lifelong", _events(0))):
        encoded = encode_events(events, np.full(len(events), NOW), tokenizer.catalogue, 32, 16)
        batch[name] = torch.from_numpy(encoded)[None]
        batch[f"{name}_mask"] = torch.ones(1, len(events), dtype=torch.bool)
    candidates = plain.item_ids[2:]
    score = p_score.score(batch, torch.from_numpy(candidates // 10)[None])[0].numpy()
    assert got.item_ids.tolist() == candidates[np.argsort(-score)[:5]].tolist()
    np.testing.assert_allclose(got.scores, np.sort(score)[::-1][:5], rtol=1e-6)
    assert tokenizer.trie.lookup(torch.from_numpy(got.sids)).tolist() == (got.item_ids // 10).tolist()
    everything = _ask(recommender, k=40, beam=40).item_ids
    assert len(_ask(selecting, exclude=everything).item_ids) == 0


def test_an_unknown_selection_is_refused(tmp_path):
    with pytest.raises(ValueError, match="select is 'best'"):
        Recommender.load(tmp_path, select="best")
    with pytest.raises(ValueError, match="no reward model to select by"):
        Recommender.load(tmp_path, select="p_score")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"static": np.array([1, 2])}, r"static has shape \(2,\)"),
        ({"static": np.array([1, 2, -1])}, "static codes"),
        ({"static": np.array([1, 2, 8192])}, "static codes"),
        ({"k": 0}, "k is 0"),
        ({"k": MAX_BEAM + 1}, "k is 513"),
        ({"beam": 0}, "beam is 0"),
        ({"short": np.zeros((3, 6), np.int64)}, "short has shape"),
        ({"lifelong": np.zeros(7, np.int64)}, "lifelong has shape"),
    ],
)
def test_wrong_requests_are_refused_by_name(recommender, changes, message):
    with pytest.raises(ValueError, match=message):
        _ask(recommender, **changes)


def test_a_session_wise_release_answers_with_its_best_list():
    model, tokenizer = small_model(items=12, session_items=3)
    request = {"static": STATIC, "short": _events(9), "positive": _events(4), "lifelong": _events(0), "now_s": NOW}
    recommender = Recommender(model, tokenizer)
    got = recommender.recommend_list(**request, exclude=np.empty(0, np.int64), beam=64)
    assert len(got.item_ids) == 3 == len(set(got.item_ids.tolist())) and len(set(got.scores.tolist())) == 1
    batch = recommender._context(STATIC, (request["short"], request["positive"], request["lifelong"]), NOW)
    index = tokenizer.catalogue.index(got.item_ids)
    z, mask = model.encode(batch)
    levels = model.code_logits(torch.from_numpy(tokenizer.sid_NL[index])[None], z, mask)
    logp = [
        torch.log_softmax(x[0], -1).gather(1, torch.from_numpy(got.sids[:, i : i + 1]).long())
        for i, x in enumerate(levels)
    ]
    assert got.scores[0] == pytest.approx(float(torch.cat(logp).detach().sum()), rel=1e-4)
    other = recommender.recommend_list(**request, exclude=got.item_ids[:1], beam=64)
    assert got.item_ids[0] not in other.item_ids and other.scores[0] < got.scores[0]
    with pytest.raises(ValueError, match=f"beam is 0; it must lie in 1..{MAX_BEAM}"):
        recommender.recommend_list(**request, exclude=got.item_ids, beam=0)


def test_a_release_of_single_items_has_no_lists(recommender):
    request = {"static": STATIC, "short": _events(1), "positive": _events(0), "lifelong": _events(0), "now_s": NOW}
    with pytest.raises(ValueError, match="generates single items"):
        recommender.recommend_list(**request, exclude=np.empty(0, np.int64), beam=8)
