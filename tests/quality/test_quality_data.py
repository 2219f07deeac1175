"""The protocol: what is held out, what a batch holds, what a rank is worth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.data import LENGTHS, Batches, Sequences, padded
from benchmarks.quality.protocol import METRICS, means, rank_next, without_history
from models.evaluation.metrics import next_item_metrics, ranking_metrics

TEXT = "1 1 2 3 4 5\n2 3 2 6 1\n"


def read(tmp_path: Path) -> Sequences:
    (tmp_path / "sequences.txt").write_text(TEXT)
    return Sequences.read_text(tmp_path / "sequences.txt")


def test_last_item_is_test_and_the_one_before_is_validation(tmp_path: Path) -> None:
    s = read(tmp_path)
    assert [r.tolist() for r in s.training()] == [[0, 1, 2], [2, 1]]
    history, target = s.held_out("validation")
    assert [h.tolist() for h in history] == [[0, 1, 2], [2, 1]] and target.tolist() == [3, 5]
    history, target = s.held_out("test")
    assert [h.tolist() for h in history] == [[0, 1, 2, 3], [2, 1, 5]] and target.tolist() == [4, 0]


def test_sequences_come_back_from_their_folder(tmp_path: Path) -> None:
    s = read(tmp_path)
    s.save(tmp_path)
    again = Sequences.load(tmp_path)
    assert again.num_items == s.num_items == 6
    assert np.array_equal(again.items, s.items) and np.array_equal(again.offsets, s.offsets)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prepare"):
        Sequences.load(tmp_path)
    with pytest.raises(ValueError, match="validation"):
        read(tmp_path).held_out("train")
    with pytest.raises(ValueError, match="three items"):
        Sequences(items=np.array([0, 1]), offsets=np.array([0, 2]), num_items=2)


def test_an_epoch_holds_every_row_once_and_little_padding() -> None:
    rng = np.random.default_rng(0)
    rows = [np.arange(n) + 100 * n for n in rng.integers(2, 40, size=200)]
    data = Batches(rows, padding=9999, device=torch.device("cpu"))
    found = []
    for batch in data.epoch(16, np.random.default_rng(1)):
        longest = int((batch != 9999).sum(1).max())
        assert batch.shape == (
            16,
            min(n for n in (*LENGTHS, 39) if n >= longest),
        )  # few shapes, none longer than needed
        found += [tuple(x for x in row if x != 9999) for row in batch.tolist()]
    assert sorted(row for row in found if row) == sorted(tuple(r.tolist()) for r in rows)
    assert len(found) == 208  # the last batch is filled with padding


def test_a_batch_holds_targets_targets_on_average() -> None:
    """What a loss summed over events is divided by, so that every event of an epoch counts the same."""
    rows = [np.arange(n) for n in np.random.default_rng(0).integers(1, 60, size=130)]
    data = Batches(rows, padding=9999, device=torch.device("cpu"))
    counts = [int((batch[:, :-1] != 9999).sum()) for batch in data.epoch(16, np.random.default_rng(1))]
    assert len(counts) == 9 and data.targets(16) == pytest.approx(np.mean(counts))


def test_rows_keep_their_newest_items_on_the_right() -> None:
    assert padded([np.array([1, 2, 3]), np.array([4]), np.array([], int)], 2, 0).tolist() == [[2, 3], [0, 4], [0, 0]]


def test_next_item_metrics_equal_the_general_ones() -> None:
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(40)[:10] for _ in range(300)])
    ranked[5:9, 7:] = -1
    target = rng.integers(40, size=300)
    found = next_item_metrics(ranked, target, cutoffs=(5, 10))
    general = ranking_metrics(ranked, [np.array([t]) for t in target])
    for name in ("recall@10", "ndcg@10"):
        np.testing.assert_allclose(found[name], general[name])
    by_hand = [1 / math.log2(2 + list(r[:5]).index(t)) if t in r[:5] else 0.0 for r, t in zip(ranked, target)]
    np.testing.assert_allclose(found["ndcg@5"], by_hand)
    with pytest.raises(ValueError, match="10"):
        next_item_metrics(ranked[:, :5], target)


def test_the_history_never_stands_in_a_list() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    kept = without_history(score, torch.tensor([[3, 0], [2, 1]]))  # 3 is the padding
    assert kept.isinf().tolist() == [[True, False, False], [False, True, True]]


def test_ranking_a_perfect_model_gives_one() -> None:
    rng = np.random.default_rng(2)
    rows = [rng.permutation(30)[:n] for n in rng.integers(3, 12, size=60)]
    s = Sequences(items=np.concatenate(rows), offsets=np.cumsum([0] + [len(r) for r in rows]), num_items=30)
    history, target = s.held_out("test")
    wanted = {tuple(h.tolist()): t for h, t in zip(history, target)}

    def oracle(items_BT: torch.Tensor) -> torch.Tensor:
        score = torch.zeros(len(items_BT), 30)
        for i, row in enumerate(items_BT.tolist()):
            seen = tuple(x for x in row if x < 30)
            score[i, wanted[seen]] = 1
            score[i, list(seen)] = 2  # must not matter
        return score

    assert len(wanted) == len(rows)
    assert means(rank_next(oracle, s, "test", torch.device("cpu"), batch=7)) == dict.fromkeys(METRICS, 1.0)


def test_mixed_batches_hold_every_user_once_at_full_length() -> None:
    rows = [np.arange(1 + i % 5) for i in range(11)]
    batches = list(Batches(rows, 9, torch.device("cpu")).mixed_epoch(4, np.random.default_rng(0)))
    assert [tuple(b.shape) for b in batches] == [(4, 5)] * 3
    lengths = torch.cat([(b < 9).sum(1) for b in batches]).tolist()
    assert sorted(lengths) == sorted([len(r) for r in rows] + [0])
