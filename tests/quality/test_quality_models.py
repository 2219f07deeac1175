"""Every trained row learns a planted pattern; heads, masks and scores are checked against the slow way."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from benchmarks.quality.data import IGNORED, MAX_HISTORY, Sequences
from benchmarks.quality.onerec import OneRecSequences, SequenceOneRec
from benchmarks.quality.prepare import semantic_ids
from benchmarks.quality.protocol import means
from benchmarks.quality.sasrec import SASRec, SASRecConfig, sampled_softmax, train_sasrec
from benchmarks.quality.steps import WARM, Steps, adam, set_rate
from benchmarks.quality.train import Training, losses, rank_onerec, rate, train_onerec, windows
from benchmarks.rq_vae import train_rq_vae

torch.set_num_threads(1)
CPU, CODES = torch.device("cpu"), 8
SMALL = OneRecSequences(d_model=32, encoder_layers=1, decoder_layers=1, dropout=0.1, table_dropout=0.2)
QUIET = {"progress": lambda line: None}


@pytest.fixture(scope="module")
def sid(ring_vectors: np.ndarray) -> np.ndarray:
    return semantic_ids(ring_vectors, CODES, seed=1)[0]


def small_model(sid: np.ndarray, content: np.ndarray, **changed) -> SequenceOneRec:
    torch.manual_seed(0)
    return SequenceOneRec(dataclasses.replace(SMALL, **changed), sid, content, CODES).eval()


@pytest.mark.parametrize("mixed", [False, True])
def test_sasrec_learns_the_ring(planted: Sequences, mixed: bool) -> None:
    config = SASRecConfig(d_model=32, epochs=20, batch=32, negatives=16, mixed=mixed)
    _, selection = train_sasrec(config, planted, seed=1, device=CPU, **QUIET)
    assert selection.best > 0.6
    assert selection.best == max(point["ndcg@10"] for point in selection.curve)


@pytest.mark.parametrize("changed", [{}, {"causal": False}, {"smoothing": 0.1, "negatives": 16, "own": False}])
def test_onerec_learns_the_ring(planted: Sequences, sid: np.ndarray, ring_vectors: np.ndarray, changed: dict) -> None:
    options = dataclasses.replace(SMALL, **changed)
    training = Training(epochs=20 if options.causal else 10, batch=32, learning_rate=3e-3)
    model, _ = train_onerec(options, training, planted, sid, ring_vectors, CODES, seed=1, device=CPU, **QUIET)
    found = {w: means(values) for w, values in rank_onerec(model, planted, "test", CPU).items()}
    assert found[1.0, 0.0]["recall@5"] > 0.8  # the two likely items; chance is .10
    assert found[0.0, 0.0]["recall@5"] > 0.6 and found[math.inf, 0.0]["recall@5"] > 0.6


def test_tiger_style_has_no_item_head(planted: Sequences, sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    options = dataclasses.replace(SMALL, content=False, own=False, item_loss=0.0)
    training = Training(epochs=20, batch=32, learning_rate=3e-3, select=(0.0, 0.0))
    model, _ = train_onerec(options, training, planted, sid, ring_vectors, CODES, seed=1, device=CPU, **QUIET)
    assert means(rank_onerec(model, planted, "test", CPU, weights=((0.0, 0.0),))[0.0, 0.0])["recall@5"] > 0.6


def test_a_causal_state_knows_nothing_of_later_events(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    N = len(sid)
    model, sasrec = small_model(sid, ring_vectors), SASRec(SASRecConfig(d_model=32), N).eval()
    a = torch.tensor([[N, 4, 7, 9, 2]])
    b = a.clone()
    b[0, -1] = 30
    for encode in (lambda x: model.context(x, model.table())[0], lambda x: sasrec(x, sasrec.table())):
        torch.testing.assert_close(encode(a)[:, :-1], encode(b)[:, :-1])
        assert not torch.allclose(encode(a)[:, -1], encode(b)[:, -1])


def test_padding_changes_nothing(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    N = len(sid)
    model, sasrec = small_model(sid, ring_vectors), SASRec(SASRecConfig(d_model=32), N).eval()
    short, long = torch.tensor([[4, 7, 9]]), torch.tensor([[N, N, 4, 7, 9]])
    for encode in (lambda x: model.context(x, model.table())[0], lambda x: sasrec(x, sasrec.table())):
        torch.testing.assert_close(encode(short)[:, -3:], encode(long)[:, -3:])


def test_sasrec_pads_with_zeros_that_are_attended_to() -> None:
    """The one key with the logarithm of the padding's number equals MAX_HISTORY places of real zeros."""
    model, items = SASRec(SASRecConfig(d_model=16, blocks=2), 30).eval(), torch.tensor([[30, 4, 7, 9], [1, 2, 3, 4]])
    with torch.no_grad():
        for block in model.blocks:
            block.kv.bias.normal_()
        found = model(items, model.table())[:, -1]
        full = torch.cat([torch.full((2, MAX_HISTORY - 4), 30), items], 1)
        real = (full < 30)[..., None]
        x = model.table()[full] + model.position(torch.arange(MAX_HISTORY - 1, -1, -1))
        causal = torch.full((MAX_HISTORY, MAX_HISTORY), float("-inf")).triu(1)
        for block in model.blocks:
            x = block(x * real, causal)
        torch.testing.assert_close(found, model.norm(x)[:, -1])
        longest = torch.arange(MAX_HISTORY)[None] % 30
        assert torch.isfinite(model(longest, model.table())).all()  # no padding at all


def test_shared_context_gives_each_window_its_own_loss(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    """The token states of all positions at once equal decoding after each prefix by itself."""
    model = small_model(sid, ring_vectors)
    row = torch.tensor([[4, 7, 9, 2, 11]])
    codes = model.sid_NL[row[:, 1:]]
    z, mask = model.context(row[:, :-1], model.table())
    together = model.token_states(codes, z, mask)
    for t in range(4):
        alone = model.decode(codes[:, t : t + 1, :-1], model.context_kv(z[:, : t + 2]), mask[:, : t + 2])
        torch.testing.assert_close(together[:, t], alone[:, 0])


def test_candidates_carry_the_full_models_scores(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    """With a width of the whole catalogue every unseen item comes once, with its own log-probabilities."""
    model, N = small_model(sid, ring_vectors), len(sid)
    history = torch.tensor([[N, 4, 7], [1, 2, 3]])
    with torch.no_grad():
        items, token, item, real = model.candidates(history, N)
        z, mask = model.context(history, model.table())
        expected = model.candidate_logp(torch.arange(N).expand(2, -1), z, mask)
        head = torch.log_softmax(model.item_states(z[:, -1]) @ model.table()[:-1].T, -1)
    for b, seen in enumerate(([4, 7], [1, 2, 3])):
        found = items[b][real[b]]
        assert sorted(found.tolist()) == sorted(set(range(N)) - set(seen))
        torch.testing.assert_close(token[b][real[b]], expected[b, found])
        torch.testing.assert_close(item[b][real[b]], head[b, found])


def test_token_probabilities_spell_a_distribution(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    """Over all code tuples, legal or not, the three heads' products sum to one; the legal ones to less."""
    model = small_model(sid, ring_vectors)
    with torch.no_grad():
        z, mask = model.context(torch.tensor([[4, 7, 9]]), model.table())
        legal = model.candidate_logp(torch.arange(len(sid))[None], z, mask).exp().sum()
        grid = torch.cartesian_prod(*(torch.arange(CODES),) * 3)
        hidden = model.decode(grid[None, :, :-1], model.context_kv(z), mask)
        logp = sum(
            torch.log_softmax(model.level_logits(hidden[:, :, level], level), -1)[0, range(len(grid)), grid[:, level]]
            for level in range(3)
        )
    assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert 0 < float(legal) < 1


def test_legal_probabilities_of_all_items_sum_to_one(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    model = small_model(sid, ring_vectors, legal=True, smoothing=0.1)
    with torch.no_grad():
        z, mask = model.context(torch.tensor([[4, 7, 9]]), model.table())
        logp = model.candidate_logp(torch.arange(len(sid))[None], z, mask)
    assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert np.isfinite(float(losses(model, torch.tensor([[4, 7, 9, 1]])).detach()))


def test_smoothing_spreads_over_legal_siblings_only(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    model = small_model(sid, ring_vectors)
    for level, rows in enumerate(model.siblings()):
        for i in (0, 17, len(sid) - 1):
            same = (sid[:, :level] == sid[i, :level]).all(1)
            legal = np.unique(sid[same, level])
            assert np.flatnonzero(rows[i]).tolist() == legal.tolist()
            assert rows[i, legal].tolist() == pytest.approx([1 / len(legal)] * len(legal))


def test_the_loss_is_the_sum_of_both_heads(sid: np.ndarray, ring_vectors: np.ndarray) -> None:
    row = torch.tensor([[len(sid), 4, 7, 9], [1, 2, 3, 5]])
    both = float(losses(small_model(sid, ring_vectors), row).detach())
    item = float(losses(small_model(sid, ring_vectors, token_loss=0.0), row).detach())
    token = float(losses(small_model(sid, ring_vectors, item_loss=0.0), row).detach())
    assert both == pytest.approx(item + token, rel=1e-5)


@pytest.mark.parametrize("changed", [{}, {"smoothing": 0.1}, {"legal": True}, {"causal": False}, {"negatives": 16}])
def test_padding_adds_no_loss(sid: np.ndarray, ring_vectors: np.ndarray, changed: dict) -> None:
    """Longer rows and rows of padding alone, which give batches their few shapes, count nothing."""
    model, N = small_model(sid, ring_vectors, **changed), len(sid)
    wide = torch.tensor([[N, N, 4, 7, 9], [N, N, N, 3, 5], [N] * 5])
    alone = (wide[:1, 2:], wide[1:2, 3:])
    torch.manual_seed(3)
    found = float(losses(model, wide).detach())
    if not changed.get("negatives"):  # draws differ with the shape
        assert found == pytest.approx(sum(float(losses(model, row).detach()) for row in alone), rel=1e-5)
    assert math.isfinite(found) and float(losses(model, wide[2:]).detach()) == 0


def test_sampled_softmax_agrees_on_both_ways_of_computing_it() -> None:
    """Gathering rows and one dense product draw the same negatives and give the same loss; 0 is the full softmax."""
    state, table, target = torch.randn(6, 4), torch.randn(200, 4), torch.arange(6)
    torch.manual_seed(3)
    gathered = sampled_softmax(state, target, table, 20)
    torch.manual_seed(3)
    drawn = torch.randint(200, (6, 20))
    logits = torch.cat([(state @ table.T).gather(1, target[:, None]), (state @ table.T).gather(1, drawn)], 1)
    assert float(gathered) == pytest.approx(float(-torch.log_softmax(logits, 1)[:, 0].sum()), rel=1e-5)
    full = torch.nn.functional.cross_entropy(state @ table.T, target, reduction="sum")
    assert float(sampled_softmax(state, target, table, 0)) == pytest.approx(float(full), rel=1e-6)
    some = torch.tensor([0, IGNORED, 2, IGNORED, 4, 5])
    kept = torch.nn.functional.cross_entropy(state[some >= 0] @ table.T, some[some >= 0], reduction="sum")
    assert float(sampled_softmax(state, some, table, 0)) == pytest.approx(float(kept), rel=1e-6)
    for rows in (200, 100):  # both ways of computing it
        assert float(sampled_softmax(state, torch.full((6,), IGNORED), table[:rows], 20)) == 0


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    assert rate(0.025, 0.05) == pytest.approx(0.5)
    assert [rate(done, 0.05) for done in (0.05, 0.525, 1.0, 1.4)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_windows_are_all_prefixes() -> None:
    assert [w.tolist() for w in windows([np.array([1, 2, 3])])] == [[1, 2], [1, 2, 3]]


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        OneRecSequences(codes=False, content=False, own=False)
    with pytest.raises(ValueError, match="both 0"):
        OneRecSequences(item_loss=0.0, token_loss=0.0)


def test_rq_vae_uses_its_codes_and_rebuilds_clusters() -> None:
    """Four well separated clusters of unequal size: the first code alone tells them apart."""
    rng = np.random.default_rng(0)
    label = rng.integers(4, size=400)
    x = (np.eye(4, 12)[label] * 5 + rng.normal(size=(400, 12)) * 0.1).astype(np.float32)
    scaled = torch.from_numpy(x / x.std())
    model = train_rq_vae(scaled, codes=4, seed=1, epochs=150, levels=2, latent=32, batch=100, revive=True)
    codes, latents = (t.numpy() for t in model.encode(scaled))
    books = [book.detach().numpy() for book in model.codebook]
    assert len({(c, label_) for c, label_ in zip(codes[:, 0].tolist(), label.tolist())}) == 4
    rebuilt = books[0][codes[:, 0]] + books[1][codes[:, 1]]
    assert np.square(latents - rebuilt).mean() < 0.2 * latents.var()


def trained(device: torch.device, graphs: bool) -> torch.Tensor:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8).to(device)
    optimizer = adam(layer.parameters(), rate=0.1, weight_decay=0.0, decoupled=True, device=device)

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        layer(x).square().sum().backward()
        optimizer.step()

    run = Steps(step, device) if graphs else step
    for i in range(3 * WARM):
        set_rate(optimizer, 0.1 / (1 + i))
        run(torch.full((2 + i % 2, 8), float(i), device=device))
    return layer.weight.detach().cpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replayed_steps_equal_plain_ones() -> None:
    torch.testing.assert_close(trained(torch.device("cuda"), True), trained(torch.device("cuda"), False))


def test_on_a_cpu_a_step_is_called_as_it_is() -> None:
    seen: list[int] = []
    run = Steps(lambda x: seen.append(len(x)), CPU)
    for size in (2, 3, 2, 2, 2, 2):
        run(torch.zeros(size, 1))
    assert seen == [2, 3, 2, 2, 2, 2]
    optimizer = adam([torch.nn.Parameter(torch.ones(1))], rate=0.1, weight_decay=0.0, decoupled=False, device=CPU)
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
