"""The cascade: its ranker against formulas and PyTorch's FLOP counter, the joining of the stages, a whole request."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.quality import cascade
from benchmarks.quality.cascade_cost import Cascade
from benchmarks.quality.din import Ranker, RankerConfig, about_items
from benchmarks.quality.kuairand_trained import TwoTower

ITEMS = 30


@pytest.fixture
def config() -> RankerConfig:
    return RankerConfig(items=ITEMS, static_features=3, d_model=16, short_len=4, positive_len=6, lifelong_len=6)


@pytest.fixture
def ranker(config: RankerConfig) -> Ranker:
    torch.manual_seed(0)
    return Ranker(config, torch.randint(1, 9, (ITEMS + 1, 3))).eval()


def rows(config: RankerConfig, users: int = 2) -> dict[str, torch.Tensor]:
    """Random full histories."""
    torch.manual_seed(1)
    batch = {"static": torch.randint(50, (users, config.static_features))}
    for name in ("short", "positive", "lifelong"):
        length = getattr(config, f"{name}_len")
        batch[name] = torch.stack([torch.randint(8, (users, length)) for _ in range(7)], -1)
        batch[f"{name}_mask"] = torch.ones(users, length, dtype=torch.bool)
    return batch


def test_the_activation_unit_reads_event_candidate_and_product(ranker: Ranker) -> None:
    item, event = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [False, True, True, False, True]])
    found = ranker.interest(item, event, mask)
    for b, m in ((0, 0), (1, 2)):
        expected = torch.zeros(16)
        for s in range(5):
            if mask[b, s]:
                hidden = ranker.unit_event(event[b, s]) + ranker.unit_candidate(item[b, m])
                hidden = hidden + ranker.unit_both(event[b, s] * item[b, m])
                expected += ranker.unit_out(torch.nn.functional.leaky_relu(hidden)) * event[b, s]
        torch.testing.assert_close(found[b, m], expected, atol=1e-5, rtol=1e-4)


def test_padding_says_nothing(ranker: Ranker, config: RankerConfig) -> None:
    batch = rows(config)
    batch["positive_mask"][:, :3] = False
    other = batch | {"positive": batch["positive"].clone()}
    other["positive"][:, :3] = 7
    item = torch.arange(6).view(2, 3)
    torch.testing.assert_close(ranker(batch, item), ranker(other, item))


@pytest.mark.parametrize("candidates", [1, 7])
def test_flops_are_those_that_pytorch_counts(ranker: Ranker, config: RankerConfig, candidates: int) -> None:
    batch = rows(config, users=1)
    with FlopCounterMode(display=False) as counter:
        ranker(batch, torch.arange(candidates)[None])
    assert counter.get_total_flops() == ranker.flops(candidates)


def test_what_events_tell_about_items() -> None:
    events = torch.tensor([[3, 11, 12, 0, 0, 13, 0], [ITEMS, 1, 1, 0, 0, 1, 0]])
    about = about_items([events], ITEMS)
    assert about[3].tolist() == [11, 12, 13] and about[4].tolist() == [0, 0, 0] and about[ITEMS].tolist() == [0, 0, 0]


def test_joint_score_between_both_stages() -> None:
    item = np.array([[4, 5, 6, -1]])
    retrieval = np.array([[-1.0, -1.5, -3.0, -np.inf]])
    ranker = np.array([[-3.0, -2.0, -1.0, -np.inf]])
    assert cascade.joined(item, retrieval, ranker, 0.1).tolist() == [[4, 5, 6, -1]]
    assert cascade.joined(item, retrieval, ranker, 1.0).tolist() == [[5, 4, 6, -1]]
    assert cascade.joined(item, retrieval, ranker, float("inf")).tolist() == [[6, 5, 4, -1]]


def test_one_request_is_retrieval_then_ranking(ranker: Ranker, config: RankerConfig) -> None:
    torch.manual_seed(2)
    program = Cascade(TwoTower(ITEMS), ranker, 8)
    batch = rows(config)
    lengths = torch.tensor([[config.short_len, config.positive_len, config.lifelong_len]]).expand(2, -1)
    inputs = [batch["static"], batch["short"], batch["positive"], batch["lifelong"], lengths, torch.zeros(2)]
    with torch.no_grad():
        item, score = program(*inputs)
        state = program.retrieval(batch["positive"][..., 0], program.table_ND)[:, -1]
        logp = (state @ program.table_ND[:-1].T).log_softmax(-1)
        total = logp.gather(1, item) + torch.nn.functional.logsigmoid(ranker(batch, item))
    assert {frozenset(row) for row in item.tolist()} == {frozenset(row) for row in logp.topk(8).indices.tolist()}
    torch.testing.assert_close(score, total)
    assert (score.diff(dim=1) <= 0).all()
    assert set(program.flops()) == {"retrieval", "ranking"}


def test_a_preference_among_shown_items_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users like items of their own parity: the history tells which."""

    @dataclasses.dataclass
    class Catalogue:
        def __len__(self) -> int:
            return ITEMS

    rng = np.random.default_rng(0)
    users, own = 400, rng.integers(2, size=400)
    history = 2 * rng.integers(ITEMS // 2, size=(users, 6)) + own[:, None]
    items = rng.integers(ITEMS, size=(users, 8))
    label = np.where(items % 2 == own[:, None], 2, 0)  # bit 1: long view

    class Rows:
        """As much of a TrainingSet as the ranker's training reads."""

        catalogue = Catalogue()
        static = np.zeros((users, 3), np.int64)
        shown = cascade_ragged(np.stack([items, label, np.full_like(items, 255)], -1))
        pathway = dict.fromkeys(("short", "positive", "lifelong"), cascade_ragged(np.zeros((users, 1, 7), np.int64)))

        def context(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
            events = torch.zeros(len(rows), 6, 7, dtype=torch.long)
            events[..., 0] = torch.from_numpy(history[rows])
            mask = torch.ones(len(rows), 6, dtype=torch.bool)
            batch = {"static": torch.zeros(len(rows), 3, dtype=torch.long)}
            for name in ("short", "positive", "lifelong"):
                batch |= {name: events, f"{name}_mask": mask}
            return batch

        def batches(self, rows: np.ndarray, size: int, seed: int):
            yield from np.array_split(np.random.default_rng(seed).permutation(rows), len(rows) // size)

    monkeypatch.setattr(cascade, "BATCH", 40)
    monkeypatch.setattr(cascade, "RATE", 5e-3)
    data = Rows()
    *_, model = cascade.train_ranker(data, negatives=0, epochs=4, seed=1, device=torch.device("cpu"))
    with torch.no_grad():
        logit = model(data.context(np.arange(users)), torch.arange(ITEMS).expand(users, -1)).numpy()
    right = (logit > np.median(logit)) == (np.arange(ITEMS) % 2 == own[:, None])
    assert right.mean() > 0.9


def cascade_ragged(values: np.ndarray):
    """[U, n, ...] as a ragged array of equal rows."""
    from models.training.data import Ragged

    return Ragged(values.reshape(-1, values.shape[-1]), np.arange(len(values) + 1) * values.shape[1])
