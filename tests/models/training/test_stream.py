"""Streams: every row once an epoch, the last epoch by day, exact resume, disjoint streams, pools, the loader."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer
from models.training.data import PATHWAYS, TrainingSet, UserDays, batches_in, keep_pathways, without_full_masks
from models.training.losses import PretrainLoss
from models.training.meter import counts_of
from models.training.prefetch import Prefetcher
from models.training.row_groups import Index
from models.training.stream import DAY_S, Recency, Stream
from tests.models.conftest import CLICK, Row, write_training_set
from tests.models.training.tiny import cut, tiny


@pytest.fixture(scope="module")
def parts(world, tmp_path_factory):
    """The world's training sets in row groups of 8, their tokenizer, configuration and index."""
    paths = cut(world.training, tmp_path_factory.mktemp("cut"), 8)
    tok = Tokenizer.load(world.tokenizer)
    config = tiny(codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=3)
    return paths, tok, config, Index.scan(paths, tok.catalogue)


def _stream(parts, **changes) -> Stream:
    _, tok, config, index = parts
    fields = {"batch_size": 5, "max_targets": 4, "epochs": 3, "seed": 7, "pool_rows": 24}
    return Stream(index=index, catalogue=tok.catalogue, config=config, **(fields | changes))


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_index_counts_what_a_training_set_holds(parts, world):
    paths, tok, config, index = parts
    whole = TrainingSet(world.training, tok.catalogue, config)
    assert index.rows == int((whole.targets.lengths > 0).sum())
    assert index.targets == int(whole.targets.lengths.sum())
    assert index.newest_s == whole.now_s.max()
    assert len(index.groups) == 16 and {g.path for g in index.groups} == set(paths)


@pytest.mark.parametrize("streams", [1, 3])
def test_an_epoch_visits_rows_once_and_the_last_one_goes_by_day(parts, streams, monkeypatch):
    seen: list[tuple[int, int]] = []
    original = UserDays.batch

    def recorded(self, rows, max_targets, max_others):
        seen.extend(zip(self.user_id[rows].tolist(), (self.now_s[rows] // DAY_S).tolist()))
        return original(self, rows, max_targets, max_others)

    monkeypatch.setattr(UserDays, "batch", recorded)
    for number in range(streams):
        stream = _stream(parts, epochs=1, streams=streams, number=number)
        before = len(seen)
        assert sum(1 for _ in stream.batches()) == stream.steps()
        days = [day for _, day in seen[before:]]
        assert days == sorted(days)
    assert len(set(seen)) == len(seen)
    total = parts[3].rows
    assert total - 24 * (streams > 1) <= len(seen) <= total  # streams end together: a short tail may be left
    if streams == 1:
        once, both = len(seen), _stream(parts, epochs=2)
        seen.clear()
        assert sum(1 for _ in both.batches()) == both.steps()
        assert len(seen) == 2 * once and sorted(seen[:once]) == sorted(seen[once:])
        first = [day for _, day in seen[:once]]
        assert first != sorted(first) and seen[:once] != seen[once:]


def test_any_step_is_found_again_exactly(parts):
    for streams in (1, 2):
        stream = _stream(parts, streams=streams, number=streams - 1)
        everything = list(stream.batches())
        assert len(everything) == stream.steps()
        for start in (0, 1, 5, stream.steps() // 2, stream.steps() - 1, stream.steps()):
            rest = list(stream.batches(start))
            assert len(rest) == len(everything) - start
            assert all(_same(a, b) for a, b in zip(rest, everything[start:]))
    other = list(_stream(parts, seed=8).batches())
    assert not all(_same(a, b) for a, b in zip(other, _stream(parts).batches()))


def test_a_pool_never_holds_more_rows_than_told(parts, monkeypatch):
    held: list[int] = []
    original = Stream._read
    monkeypatch.setattr(Stream, "_read", lambda self, pool: held.append(self._rows(pool)) or original(self, pool))
    list(_stream(parts, pool_rows=20).batches())
    assert max(held) <= 20 and len(held) > 3
    held.clear()
    list(_stream(parts, pool_rows=10_000, epochs=4).batches())
    assert len(held) == 3  # one pool for all early epochs, read once; then a day each


def test_one_pool_gives_the_batches_of_the_whole_set(parts, world):
    """What the daily run trains on is what it was before the data were streamed."""
    _, tok, config, _ = parts
    whole = TrainingSet(world.training, tok.catalogue, config)
    rows = np.flatnonzero(whole.targets.lengths > 0)
    expected = [whole.batch(b, 4) for b in whole.batches(rows, 5, seed=7)]
    got = list(_stream(parts, epochs=2, pool_rows=10_000).batches())[: len(expected)]
    for a, b in zip(got, expected, strict=True):
        assert _same({k: v for k, v in a.items() if k != "weight"}, without_full_masks(b))


def test_weights_halve_by_age_and_are_one_on_average_over_targets(parts, world):
    _, tok, config, index = parts
    whole = TrainingSet(world.training, tok.catalogue, config)
    recency = Recency(half_life_days=0.5, least=0.01)
    weight = recency.weight(whole.now_s, index)
    assert np.average(weight, weights=whole.targets.lengths) == pytest.approx(1)
    assert weight.min() / weight.max() == pytest.approx(0.25)
    floor = Recency(half_life_days=0.01, least=0.3).weight(whole.now_s, index)
    assert floor.min() / floor.max() == pytest.approx(0.3)
    batch = next(_stream(parts).batches())
    assert batch["weight"].dtype == torch.float32 and batch["weight"].shape == batch["static"].shape[:1]


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(0, 3000), size=st.integers(1, 40))
def test_batches_in_counts_what_batches_makes(rows, size):
    pools = np.array_split(np.arange(rows), max(1, round(rows / (32 * size))))
    assert batches_in(rows, size) == sum(-(-len(p) // size) for p in pools)


def test_refusals(parts, tmp_path):
    paths, tok, *_ = parts
    with pytest.raises(ValueError, match=r"16 row groups for 17 streams.*smaller row groups"):
        _stream(parts, streams=17)
    clicks = write_training_set(tmp_path / "clicks.parquet", [Row(1, shown=[[3, CLICK, 255, 1, 1]])])
    with pytest.raises(ValueError, match="no positive impression"):
        Index.scan([clicks], tok.catalogue)
    with pytest.raises(ValueError, match=r"no training rows in .*empty\.parquet"):
        Index.scan([write_training_set(tmp_path / "empty.parquet", [])], tok.catalogue)
    moved = cut(paths, tmp_path / "moved", 8)
    stream = dataclasses.replace(_stream(parts), index=Index.scan(moved, tok.catalogue))
    table = pq.read_table(moved[0])
    pq.write_table(table.take(np.arange(len(table))[::-1].copy()).slice(0, 40), moved[0], row_group_size=5)
    with pytest.raises((ValueError, IndexError)):
        list(stream.batches())


def test_pathways_can_be_kept_from_a_model(parts):
    batch = list(_stream(parts).batches())[-1]  # of the second day: the first has no history
    shown = keep_pathways(batch, ("positive",))
    assert not shown["static"].any() and shown["short"].shape[1] == shown["lifelong_mask"].shape[1] == 0
    assert torch.equal(shown["positive"], batch["positive"]) and batch["positive"].shape[1] and batch["short"].shape[1]
    assert _same(list(_stream(parts, inputs=("positive",)).batches())[-1], shown)


def test_the_loader_keeps_order_counts_waiting_and_raises_what_its_thread_met():
    def slow(n: int, error: bool = False):
        for i in range(n):
            time.sleep(0.01)
            yield ({"x": torch.tensor([i])},)
        if error:
            raise ValueError("row group is broken")

    with Prefetcher(slow(5)) as loader:
        assert [int(batch["x"]) for (batch,) in loader] == list(range(5))
        assert loader.waited > 0.02
    with Prefetcher(slow(2, error=True)) as loader, pytest.raises(ValueError, match="row group is broken"):
        list(loader)
    with Prefetcher(slow(1000)) as loader:  # left early, with a full queue
        next(iter(loader))
    assert not any(t.name == "batches" for t in threading.enumerate())


def test_rows_of_one_length_come_without_masks_and_count_and_learn_the_same(parts):
    """A batch of one row has histories of one length: nothing may depend on whether masks are there."""
    _, tok, config, _ = parts
    model = OneRec(config, torch.from_numpy(tok.sid_NL))
    loss, bare, masked = PretrainLoss(model, 1.0), 0, 0
    for batch in _stream(parts, batch_size=1, epochs=1).batches():
        assert not {f"{name}_mask" for name in PATHWAYS} & batch.keys()
        full = {f"{name}_mask": torch.ones(batch[name].shape[:2], dtype=torch.bool) for name in PATHWAYS}
        assert torch.equal(counts_of(batch), counts_of(batch | full))
        targets = batch["target_mask"].sum()
        values = [loss(b, targets)[0] for b in (batch, batch | full)]
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
        bare += 1
    for batch in _stream(parts, batch_size=5, epochs=1).batches():
        masked += "short_mask" in batch
    assert bare > 10 and masked > 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_whole_on_the_device_when_they_are_read():
    """Read at once, by a stream that is behind, into memory that the loader would like to use again."""
    size = 1 << 22

    def steps():
        for i in range(30):
            yield ({"x": torch.full((size,), i)}, {"x": torch.full((size,), -i)})

    read = []
    with Prefetcher(steps(), "cuda") as loader:
        for up, down in loader:
            torch.cuda._sleep(2_000_000)
            read.append(torch.stack([up["x"].sum(), down["x"].sum()]))
            del up, down
    assert torch.stack(read).tolist() == [[i * size, -i * size] for i in range(30)]
