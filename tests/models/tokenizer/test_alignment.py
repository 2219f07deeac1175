"""Pairs, QFormer, losses and alignment against references; resumption to the same bytes; new items, frozen encoder."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer

from models.tokenizer import alignment
from models.tokenizer.aligned import AlignedConfig, AlignedRepresentation
from models.tokenizer.alignment import AlignmentConfig, ItemInputs, align, aligned_vectors, contrastive_loss
from models.tokenizer.captions import CaptionDecoder, caption_ids
from models.tokenizer.content.encoder import Tokens
from models.tokenizer.content.items import ItemContent
from models.tokenizer.content.text import bundled_model
from models.tokenizer.pairs import PairConfig, collaborative_vectors, item_to_item, training_pairs, user_to_item
from models.tokenizer.qformer import ItemEncoder, ItemEncoderConfig, QFormerLayer, TokenBatch
from models.tokenizer.representation import named_config, represent

TINY = ItemEncoderConfig(dim=16, queries=2, layers=2, heads=2, tag_buckets=64, author_buckets=64)
FAST = AlignmentConfig(encoder=TINY, batch=32, steps=60, warmup=5, learning_rate=5e-3, save_every=20)
PLAIN = dataclasses.replace(FAST, caption_weight=0.0)


def _batch(content: torch.Tensor, mask: torch.Tensor, tags: list[list[int]], author: list[int]) -> TokenBatch:
    return TokenBatch(content, mask, torch.tensor(tags), torch.tensor(author))


def _nothing(items: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(items, 0, 0), torch.zeros(items, 0, dtype=torch.bool)


# Pairs


def test_user_to_item_takes_the_most_similar_of_the_window():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.7, 0.7], [-1, 0]], np.float32)
    users = np.array([8, 8, 8, 8, 3, 3, 5])
    items = np.array([1, 2, 3, 0, 4, 0, 2])
    # 8: target 0 after 1, 2, 3: item 1. 3: target 0 after 4, whose similarity is negative: no pair. 5: a single item.
    assert user_to_item(users, items, vectors).tolist() == [[0, 1]]
    assert user_to_item(users, items, vectors, window=2).tolist() == [[0, 3]]
    two = user_to_item(users, items, vectors, targets=2).tolist()
    assert sorted(two) == [
        [0, 1],
        [3, 2],
    ]  # 3 is nearer to 2 (.7) than to 1 (.7 * .9 + .7 * .1 = .7): a tie, the newest wins


def test_user_to_item_against_brute_force():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 900), rng.integers(0, 50, 900)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    expected = []
    for user in np.unique(users):
        mine = items[users == user]
        for t in range(max(1, len(mine) - 3), len(mine)):
            before = [i for i in mine[max(0, t - 10) : t] if i != mine[t]]
            best = max(before, key=lambda i: vectors[mine[t]] @ vectors[i], default=None)
            if best is not None and vectors[mine[t]] @ vectors[best] > 0:
                expected.append([int(mine[t]), int(best)])
    got = user_to_item(users, items, vectors, window=10, targets=3).tolist()
    assert sorted(got) == sorted(expected) and len(expected) > 60


def test_item_to_item_pairs_are_swings_nearest():
    users, items = np.repeat([0, 1, 2], 3), np.array([0, 1, 2, 0, 1, 3, 0, 1, 4])
    assert item_to_item(users, items, PairConfig(neighbours=1)).tolist() == [[0, 1], [1, 0]]


def test_collaborative_vectors_of_items_without_company_are_zero():
    vectors = collaborative_vectors(np.array([0, 0, 1]), np.array([0, 1, 3]), 5, seed=0)
    assert np.linalg.norm(vectors, axis=1).round(5).tolist()[2:] == [0, 0, 0]
    assert not collaborative_vectors(np.empty(0, np.int64), np.empty(0, np.int64), 5, seed=0).any()


def test_no_interactions_no_pairs_and_a_wrong_configuration_is_refused():
    none = np.empty(0, np.int64)
    assert training_pairs(none, none, 5, PairConfig(), 0).shape == (0, 2)
    with pytest.raises(ValueError, match="one of them must be more than 0"):
        PairConfig(targets=0, neighbours=0)


# QFormer


def _attention(q, k, v, heads, mask):
    """float64 reference: one query row at a time."""
    out = np.zeros_like(q)
    width = q.shape[1] // heads
    for h in range(heads):
        s = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            score = np.where(mask, k[:, s] @ q[i, s] / width**0.5, -np.inf)
            p = np.exp(score - score.max())
            out[i, s] = (p / p.sum()) @ v[:, s]
    return out


def _rms(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


@pytest.mark.parametrize("residual", [True, False])
def test_a_layer_against_a_float64_reference(residual):
    torch.manual_seed(0)
    layer = QFormerLayer(dataclasses.replace(TINY, residual=residual)).double()
    q, m = torch.randn(1, 2, 16).double(), torch.randn(1, 5, 16).double()
    mask = torch.tensor([[True, True, False, True, False]])
    w = {n: p.detach().numpy() for n, p in layer.named_parameters()}
    k, v = np.split(m[0].numpy() @ w["kv.weight"].T, 2, axis=-1)
    read = _attention(_rms(q[0].numpy(), w["norm_q.weight"]) @ w["q.weight"].T, k, v, 2, mask[0].numpy())
    x = read @ w["out.weight"].T + (q[0].numpy() if residual else 0)
    hidden = torch.nn.functional.gelu(torch.from_numpy(_rms(x, w["norm_f.weight"]) @ w["up.weight"].T + w["up.bias"]))
    y = hidden.numpy() @ w["down.weight"].T + w["down.bias"] + (x if residual else 0)
    np.testing.assert_allclose(layer(q, m, mask)[0].detach().numpy(), y, atol=1e-10)


def test_masked_tokens_unknown_tags_and_padding_do_not_matter():
    torch.manual_seed(0)
    encoder = ItemEncoder(dataclasses.replace(TINY, content_dim=6))
    encoder.learn_of(torch.tensor([[1, 2]]), torch.tensor([3]))
    content = torch.randn(1, 3, 6)
    mask = torch.tensor([[True, False, True]])
    out = encoder(_batch(content, mask, [[1, -1]], [3]))
    assert out.shape == (1, 2, 16)
    changed = content.clone()
    changed[0, 1] = 99
    torch.testing.assert_close(encoder(_batch(changed, mask, [[1, -1]], [3])), out)
    torch.testing.assert_close(encoder(_batch(content[:, [0, 2]], mask[:, [0, 2]], [[1]], [3])), out)
    torch.testing.assert_close(encoder(_batch(content, mask, [[1, 9]], [3])), out)  # tag 9 was never trained on
    assert not torch.allclose(encoder(_batch(content, mask, [[1, 2]], [3])), out)
    bare = _batch(content, torch.zeros(1, 3, dtype=torch.bool), [[-1]], [-1])
    assert torch.isfinite(encoder.vectors(bare)).all()


def test_vectors_are_unit_and_the_default_is_four_times_512():
    config = ItemEncoderConfig()
    assert (config.queries, config.dim, config.layers) == (4, 512, 4)
    encoder = ItemEncoder(dataclasses.replace(TINY, queries=4))
    v = encoder.vectors(_batch(*_nothing(3), [[-1]] * 3, [-1] * 3))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(3))
    assert v.shape == (3, 64)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="multiple of heads"):
        ItemEncoderConfig(dim=10, heads=4)


# Losses


def test_contrastive_loss_is_the_printed_one_in_float64():
    rng = np.random.default_rng(0)
    a, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 6, 8)))
    i, j = np.array([0, 1, 2, 3, 4, 5]), np.array([6, 7, 6, 8, 0, 9])  # 6 twice; item 0 is an anchor and a positive
    tau, expected = 0.1, 0.0
    for row in range(6):
        others = [c for c in range(6) if c != row and j[c] != j[row] and j[c] != i[row]]
        e = np.exp(a[row] @ p.T / tau)
        expected -= np.log(e[row] / (e[row] + e[others].sum())) / 6
    t = torch.from_numpy
    assert contrastive_loss(t(a), t(p), t(i), t(j), tau).item() == pytest.approx(expected, rel=1e-10)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return CaptionDecoder(dim=16, vocabulary=30522)


def test_caption_loss_is_the_mean_next_token_loss_after_the_prefix(decoder):
    ids = torch.from_numpy(caption_ids(["red nail polish", "", "soap"]))
    assert (ids >= 0).sum(1).tolist() == [4, 0, 2]
    queries = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(1))
    total, count = 0.0, 0
    for row in (0, 2):  # one by one: no padding
        own = ids[row][ids[row] >= 0]
        assert own[-1] == 102  # [SEP]
        words = decoder.lm.get_input_embeddings()(own[None, :-1])
        logits = decoder.lm(inputs_embeds=torch.cat([decoder.prefix(queries[row : row + 1]), words], 1)).logits[0, 1:]
        total -= logits.log_softmax(-1).gather(1, own[:, None]).sum().item()
        count += len(own)
    assert decoder(queries, ids).item() == pytest.approx(total / count, rel=1e-4)


def test_captions_reach_the_queries_and_none_cost_nothing(decoder):
    queries = torch.randn(2, 2, 16, requires_grad=True)
    decoder(queries, torch.from_numpy(caption_ids(["a cat", ""]))).backward()
    assert queries.grad is not None and queries.grad[0].abs().sum() > 0 and queries.grad[1].abs().sum() == 0
    assert decoder(queries, torch.from_numpy(caption_ids(["", ""]))).item() == 0


def test_a_pretrained_decoder_is_loaded_from_a_path_and_stays_frozen(decoder, tmp_path):
    decoder.lm.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(tmp_path / "lm")
    assert np.array_equal(caption_ids(["soap"], str(tmp_path / "lm")), caption_ids(["soap"]))
    loaded = CaptionDecoder(dim=16, vocabulary=30522, name=str(tmp_path / "lm"))
    assert not any(p.requires_grad for p in loaded.lm.parameters()) and loaded.prefix.weight.requires_grad
    for name, p in decoder.lm.named_parameters():
        torch.testing.assert_close(loaded.lm.get_parameter(name), p)


# Training

TOPICS, ITEMS = 6, 60


def _world(seed: int = 0) -> tuple[list[ItemContent], np.ndarray, np.ndarray]:
    """Items of a topic share a tag with only one other topic, and users like one topic: tags halve, pairs decide."""
    rng = np.random.default_rng(seed)
    items = [
        ItemContent(tags=(i % TOPICS // 2,), author=i % TOPICS, caption=f"topic {i % TOPICS}") for i in range(ITEMS)
    ]
    users = np.repeat(np.arange(80), 8)
    liked = np.concatenate([rng.choice(ITEMS // TOPICS, 8, replace=False) * TOPICS + u % TOPICS for u in range(80)])
    return items, users, liked


def _table(items: list[ItemContent]) -> pa.Table:
    return pa.table(
        {
            "item_id": np.arange(len(items)),
            "author_id": [i.author for i in items],
            "tags": pa.array([list(i.tags) for i in items], pa.list_(pa.int32())),
            "caption": [i.caption for i in items],
        }
    )


def _recall(vectors: np.ndarray, k: int = 9) -> float:
    """Share of the k nearest that are of the same topic."""
    near = np.argsort(-(vectors @ vectors.T - 9 * np.eye(len(vectors))), axis=1)[:, :k]
    topic = np.arange(len(vectors)) % TOPICS
    return float((topic[near] == topic[:, None]).mean())


def test_alignment_brings_pairs_together():
    items, users, liked = _world()
    inputs = ItemInputs.of(items, None, TINY)
    pairs = training_pairs(users, liked, ITEMS, PairConfig(), 0)
    torch.manual_seed(0)
    untrained = ItemEncoder(TINY)
    untrained.learn_of(torch.from_numpy(inputs.tags), torch.full((1,), -1))  # before: tags alone
    before = _recall(aligned_vectors(untrained, inputs))
    lines: list[str] = []
    trained = align(inputs, pairs, PLAIN, seed=0, progress=lines.append)
    assert _recall(aligned_vectors(trained, inputs)) > 0.95 > 0.7 > before
    assert "60/60" in lines[-1] and "pairs/s" in lines[-1]


def test_the_caption_loss_falls_and_its_weight_matters():
    items, users, liked = _world()
    inputs = ItemInputs.to_align(items, None, FAST)
    pairs = training_pairs(users, liked, ITEMS, PairConfig(), 0)
    lines: list[str] = []
    config = dataclasses.replace(FAST, steps=30, caption_weight=1.0)
    first = align(inputs, pairs, dataclasses.replace(config, steps=1), seed=0, progress=lines.append)
    align(inputs, pairs, config, seed=0, progress=lines.append)
    begin, end = (float(line.split("caption ")[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert begin > 9 and end < 6  # ln 30522 = 10.3; three tokens of few values
    alone = align(
        inputs, pairs, dataclasses.replace(config, steps=1, caption_weight=0.0), seed=0, progress=lines.append
    )
    assert not torch.equal(alone.query, first.query)


def test_content_tokens_are_read():
    """Without tags or authors, tokens alone must tell the topics apart."""
    rng = np.random.default_rng(0)
    _, users, liked = _world()
    bare = [ItemContent() for _ in range(ITEMS)]
    values = np.repeat(np.eye(TOPICS, dtype=np.float16)[np.arange(ITEMS) % TOPICS], 2, axis=0)
    values += rng.normal(size=values.shape).astype(np.float16) * 0.1
    config = dataclasses.replace(TINY, content_dim=TOPICS)
    inputs = ItemInputs.of(bare, Tokens(values, np.arange(ITEMS + 1) * 2), config)
    pairs = training_pairs(users, liked, ITEMS, PairConfig(), 0)
    trained = align(inputs, pairs, dataclasses.replace(FAST, encoder=config), seed=0, progress=lambda _: None)
    assert _recall(aligned_vectors(trained, inputs)) > 0.95


def test_embeddings_have_a_rate_of_their_own():
    items, users, liked = _world()
    inputs = ItemInputs.of(items, None, TINY)
    pairs = training_pairs(users, liked, ITEMS, PairConfig(), 0)

    def after(steps: int) -> ItemEncoder:
        config = dataclasses.replace(PLAIN, steps=steps, learning_rate=0.0, embedding_rate=1e-2)
        return align(inputs, pairs, config, seed=0, progress=lambda _: None)

    one, three = after(1), after(3)
    assert torch.equal(one.query, three.query) and torch.equal(one.layers[0].q.weight, three.layers[0].q.weight)
    assert not torch.equal(one.author.weight, three.author.weight)
    assert not torch.equal(one.tag.weight, three.tag.weight)


def _state(encoder: ItemEncoder) -> dict[str, torch.Tensor]:
    return encoder.state_dict()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from models.tokenizer import alignment
from tests.models.tokenizer.test_alignment import ITEMS, PLAIN, TINY, _world
from models.tokenizer.alignment import ItemInputs, align
from models.tokenizer.pairs import PairConfig, training_pairs
save = alignment._Checkpoint.save
def then_die(self, step):
    save(self, step)
    if step == 40:
        os.kill(os.getpid(), signal.SIGKILL)
alignment._Checkpoint.save = then_die
items, users, liked = _world()
pairs = training_pairs(users, liked, ITEMS, PairConfig(), 0)
align(ItemInputs.of(items, None, TINY), pairs, PLAIN, seed=0, folder=Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, pytestconfig):
    items, users, liked = _world()
    inputs = ItemInputs.of(items, None, TINY)
    pairs = training_pairs(users, liked, ITEMS, PairConfig(), 0)
    whole = align(inputs, pairs, PLAIN, seed=0, progress=lambda _: None)
    command = [sys.executable, "-c", KILLED, str(pytestconfig.rootpath), str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    lines: list[str] = []
    resumed = align(inputs, pairs, PLAIN, seed=0, folder=tmp_path, progress=lines.append)
    assert lines[0] == "alignment goes on from step 40"
    for name, value in _state(whole).items():
        assert torch.equal(value, _state(resumed)[name]), name
    lines.clear()
    align(inputs, pairs, dataclasses.replace(PLAIN, steps=2), seed=1, folder=tmp_path, progress=lines.append)
    assert "goes on" not in lines[0]  # another seed is another run


def test_without_pairs_or_with_an_exploding_loss_it_says_what_to_do(monkeypatch):
    items, _, _ = _world()
    inputs = ItemInputs.of(items, None, TINY)
    with pytest.raises(ValueError, match="no item pairs"):
        align(inputs, np.empty((0, 2), np.int64), FAST, seed=0)
    monkeypatch.setattr(alignment, "contrastive_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(ValueError, match="lower learning_rate"):
        align(inputs, np.array([[0, 1]]), PLAIN, seed=0, progress=lambda _: None)


# The representation


def test_the_aligned_representation_is_restored_and_represents_new_items():
    items, users, liked = _world()
    config = AlignedConfig(content="", alignment=PLAIN)
    quiet = {"progress": lambda _: None}
    tensors, vectors = represent(_table(items), config=config, users=users, liked=liked, previous=None, seed=0, **quiet)
    assert vectors.shape == (ITEMS, 32) and all(isinstance(t, np.ndarray) for t in tensors.values())
    new = [ItemContent(tags=(1,), author=2), ItemContent(tags=(99,), author=77), ItemContent()]
    again, later = represent(_table([*items[:5], *new]), previous=tensors)
    assert again is tensors
    np.testing.assert_allclose(later[:5], vectors[:5], atol=1e-6)
    topic2 = vectors[np.arange(ITEMS) % TOPICS == 2].mean(0)
    topic4 = vectors[np.arange(ITEMS) % TOPICS == 4].mean(0)
    assert later[5] @ topic2 > later[5] @ topic4 + 0.3  # a new item of tag 1, author 2 lies with its topic
    np.testing.assert_allclose(later[6], later[7], atol=1e-6)  # unseen tag and author: as bare as the bare item
    assert np.isfinite(later).all()


def test_text_is_read_through_the_named_encoder():
    items, users, liked = _world()
    config = AlignedConfig(alignment=dataclasses.replace(FAST, steps=20, caption_weight=0.0))
    fitted, vectors = AlignedRepresentation.fit(config, _table(items), users, liked, seed=0, progress=lambda _: None)
    assert fitted.encoder.config.content_dim == 384 and fitted.about["content"] == "text"
    restored = AlignedRepresentation(fitted.tensors)
    np.testing.assert_allclose(restored.vectors(_table(items)), vectors, atol=1e-4)
    retold = [dataclasses.replace(items[0], caption="something else entirely"), *items[1:]]
    moved = restored.vectors(_table(retold))
    assert np.abs(moved[0] - vectors[0]).max() > 1e-3 and np.abs(moved[1:] - vectors[1:]).max() < 1e-4


def test_kinds_have_names():
    assert isinstance(named_config("aligned"), AlignedConfig)
    with pytest.raises(ValueError, match="choose from svd, aligned"):
        named_config("magic")
