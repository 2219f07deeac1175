"""Rollouts: groups, their log-probabilities, staleness, and the worker in a process of its own."""

from __future__ import annotations

import pytest
import torch

from models.onerec.beam_search import sample_codes
from models.onerec.ranking import rank_items
from models.training.checkpoint import Tokenizer, load_model, save_model
from models.training.rollout import RolloutConfig, RolloutWorker, item_logp, level_logps, sequence_logp
from models.training.rollout_process import ProcessWorker
from tests.models.conftest import random_batch, small_model

LENGTHS = [(3, 2, 1), (0, 0, 0), (5, 6, 7)]


@torch.no_grad()
def test_sequence_logp_sums_to_one_over_all_tuples():
    model, _ = small_model()
    z, mask = model.encode(random_batch(model, [(3, 2, 1), (0, 0, 0)]))
    every = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).reshape(1, -1, 3).expand(2, -1, -1)
    torch.testing.assert_close(sequence_logp(model, every, z, mask).exp().sum(1), torch.ones(2), rtol=1e-4, atol=1e-4)
    _, entropy = level_logps(model, every, z, mask)
    p = torch.softmax(model.code_logits(every, z, mask)[0].double(), -1)
    assert entropy[0].item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("search", ["beam", "free_beam", "sample"])
def test_a_rollout_says_what_was_generated_and_how_probable_it_was(search):
    model, tok = small_model()
    batch = random_batch(model, LENGTHS)
    worker = RolloutWorker(model, tok, RolloutConfig(group_size=6, search=search, free_samples=5), seed=0)
    r = worker.collect(worker.request(batch), step=0)
    assert r.codes_BGL.shape == (3, 6, 3) and r.free_codes_BFL.shape == (3, 5, 3)
    assert torch.equal(r.item_BG, tok.trie.lookup(r.codes_BGL)) and torch.equal(r.valid_BG, r.item_BG >= 0)
    assert torch.equal(r.free_item_BF, tok.trie.lookup(r.free_codes_BFL))
    if search == "beam":
        assert r.valid_BG.all() and all(len(set(row)) == 6 for row in r.item_BG.tolist())
    with torch.no_grad():
        z, mask = model.encode(batch)
        torch.testing.assert_close(r.logp_old_BG, sequence_logp(model, r.codes_BGL, z, mask))
        torch.testing.assert_close(r.free_logp_old_BF, sequence_logp(model, r.free_codes_BFL, z, mask))
        expected = torch.log_softmax(model.item_logits(z), -1)
    for b in range(3):
        for g in range(6):
            item = r.item_BG[b, g]
            value = 0.0 if item < 0 else expected[b, item].item()
            assert r.item_logp_old_BG[b, g].item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(item_logp(model, r.item_BG, z), r.item_logp_old_BG)


def test_a_group_as_wide_as_the_catalogue_holds_each_item_once():
    """Surplus beams spell items that stand in the group already; they are not valid."""
    model, tok = small_model()
    worker = RolloutWorker(model, tok, RolloutConfig(group_size=64), seed=0)
    r = worker.collect(worker.request(random_batch(model, LENGTHS)), step=0)
    for items, valid in zip(r.item_BG, r.valid_BG):
        assert sorted(items[valid].tolist()) == list(range(20)) and (items[~valid] == -1).all()


def test_lists_are_whole_and_hold_the_beams_items_in_random_order():
    model, tok = small_model()
    batch = random_batch(model, LENGTHS)
    plain, lists = (
        RolloutWorker(model, tok, RolloutConfig(group_size=10, session_items=m), seed=0).generate(batch) for m in (1, 3)
    )
    assert lists["codes_BGL"].shape == (3, 9, 3)
    assert not torch.equal(lists["item_BG"], plain["item_BG"][:, :9])
    for mine, all_of_them in zip(lists["item_BG"].tolist(), plain["item_BG"].tolist()):
        assert len(set(mine)) == 9 and set(mine) <= set(all_of_them)
    assert torch.equal(lists["item_BG"], tok.trie.lookup(lists["codes_BGL"]))
    with torch.no_grad():
        z, mask = model.encode(batch)
        torch.testing.assert_close(lists["logp_old_BG"], sequence_logp(model, lists["codes_BGL"], z, mask))


def test_pushed_parameters_generate_and_age():
    model, tok = small_model()
    other, _ = small_model(seed=1)
    worker = RolloutWorker(model, tok, RolloutConfig(group_size=4), seed=0)
    batch = random_batch(model, LENGTHS)
    before = worker.collect(worker.request(batch), step=2)
    assert before.staleness == 2 and not before.on_policy
    state = {k: v for k, v in other.state_dict().items() if k != "sid_NL"} | {"sid_NL": model.sid_NL}
    worker.push(state, step=5)
    after = worker.collect(worker.request(batch), step=5)
    assert after.staleness == 0 and after.on_policy
    assert not torch.equal(before.logp_old_BG, after.logp_old_BG)


def test_truncated_sampling_draws_only_from_the_most_probable_codes():
    model, _ = small_model()
    z, mask = model.encode(random_batch(model, LENGTHS))
    greedy = sample_codes(model, z, mask, 9, torch.Generator().manual_seed(0), top_k=1)
    assert (greedy == greedy[:, :1]).all()
    torch.testing.assert_close(greedy, sample_codes(model, z, mask, 9, torch.Generator().manual_seed(1), top_p=1e-6))
    wide = sample_codes(model, z, mask, 200, torch.Generator().manual_seed(0), top_k=2)
    assert all(len(set(row)) <= 2 for row in wide[..., 0].tolist())
    assert max(len(set(row)) for row in wide[..., 0].tolist()) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"search": "greedy"}, "search is 'greedy'"),
        ({"group_size": 1}, "group_size is 1"),
        ({"free_samples": 0}, "free_samples"),
        ({"group_size": 9, "session_items": 5}, "session_items is 5"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**changes)


def test_a_process_generates_what_the_worker_does(world, tmp_path):
    tok = Tokenizer.load(world.tokenizer)
    model, _ = small_model()
    torch.manual_seed(0)
    from models.onerec.config import onerec_laptop
    from models.onerec.model import OneRec

    config = onerec_laptop(codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=3)
    model = OneRec(config, torch.from_numpy(tok.sid_NL))
    save_model(model, tmp_path)
    batch = random_batch(model, [(3, 2, 1), (0, 0, 0)])
    rollout = RolloutConfig(group_size=5, free_samples=4)
    local = RolloutWorker(load_model(tmp_path, tok), tok, rollout, seed=3)
    with ProcessWorker(model=tmp_path, tokenizer=world.tokenizer, config=rollout, seed=3) as remote:
        folder = remote.folder
        with torch.no_grad():
            model.bos_D += 1.0
        for step in (0, 4):
            mine, theirs = (w.collect(w.request(batch), step + 1) for w in (local, remote))
            assert mine.staleness == theirs.staleness == step + 1 - local.pushed_at
            for name in ("codes_BGL", "item_BG", "valid_BG", "free_codes_BFL", "free_item_BF"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
            torch.testing.assert_close(mine.logp_old_BG, theirs.logp_old_BG)
            local.push(model.state_dict(), step + 2), remote.push(model.state_dict(), step + 2)
    assert not folder.exists()


def test_a_dead_worker_says_why(world, tmp_path):
    with ProcessWorker(model=tmp_path, tokenizer=world.tokenizer, config=RolloutConfig(), seed=3) as remote:
        ticket = remote.request({"static": torch.zeros(1, 3, dtype=torch.int64)})
        with pytest.raises(RuntimeError, match=r"(?s)rollout worker ended.*config.json"):
            remote.collect(ticket, 0)


def test_what_a_user_has_seen_is_no_candidate():
    model, tok = small_model()
    batch = random_batch(model, LENGTHS)
    everything, some = (RolloutWorker(model, tok, RolloutConfig(group_size=8, seen=s), seed=0) for s in (True, False))
    plain = everything.generate(batch)
    known = torch.stack([plain["item_BG"][:, 1], torch.tensor([-1, plain["item_BG"][1, 0], -1])], 1)
    found = some.generate(batch | {"seen": known})
    expected = plain["valid_BG"].clone()
    expected[:, 1], expected[1, 0] = False, False
    assert torch.equal(found["valid_BG"], expected) and (found["item_BG"][~expected] == -1).all()
    assert torch.equal(found["codes_BGL"], plain["codes_BGL"])
    assert torch.equal(everything.generate(batch | {"seen": known})["valid_BG"], plain["valid_BG"])


def test_lists_are_made_of_what_counts_first():
    model, tok = small_model()
    batch = random_batch(model, LENGTHS)
    config = RolloutConfig(group_size=10, session_items=3)
    seen = RolloutWorker(model, tok, RolloutConfig(group_size=10), seed=0).generate(batch)["item_BG"][:, :4]
    found = RolloutWorker(model, tok, config, seed=0).generate(batch | {"seen": seen})
    assert found["valid_BG"][:, :6].all() and not found["valid_BG"][:, 6:].any()


def test_what_is_shown_is_in_the_order_of_serving():
    """Beam and item head together, without what does not count: the ranking that serving returns."""
    model, tok = small_model()
    batch = random_batch(model, LENGTHS)
    worker = RolloutWorker(model, tok, RolloutConfig(group_size=20, session_items=2), seed=0)  # shuffled
    item, _, _ = rank_items(model.eval(), batch, tok.trie, 20)
    rollout = worker.collect(worker.request(batch | {"seen": item[:, 1:2]}), step=0)
    assert torch.equal(rollout.shown(5), item[:, [0, 2, 3, 4, 5]])
    assert rollout.shown(50).shape == (3, 20) and (rollout.shown(50)[:, -1] == -1).all()
