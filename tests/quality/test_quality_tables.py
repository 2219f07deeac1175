"""From a raw folder to a table: preparing, running a row, floors, Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality import sasrec_gap, variants
from benchmarks.quality.baselines import co_occurrence, most_popular, transitions
from benchmarks.quality.data import Sequences
from benchmarks.quality.follows import Follows
from benchmarks.quality.onerec import OneRecSequences
from benchmarks.quality.prepare import item_text, make_ids, read_texts
from benchmarks.quality.protocol import METRICS, means
from benchmarks.quality.search import best_weights
from benchmarks.quality.table import ORDER, gather, intervals, markdown, parts_of_score
from benchmarks.quality.variants import VARIANTS, Variant, run_variant

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, planted: Sequences) -> Path:
    """The planted set as raw files, then prepared with an encoder that knows nothing."""
    data, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared") / "toy"
    rows = [planted.items[a:b] + 1 for a, b in zip(planted.offsets[:-1], planted.offsets[1:])]
    (data / "sequences.txt").write_text("".join(f"{u} {' '.join(map(str, r))}\n" for u, r in enumerate(rows)))
    items = [{"item_id": i + 1, "title": f"thing {i}"} for i in range(planted.num_items)]
    (data / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    read_texts(data, out, lambda texts: np.random.default_rng(0).normal(size=(len(texts), 384)).astype(np.float32))
    make_ids(out, [1], progress=lambda line: None)
    return out


def test_a_prepared_set_has_unique_ids_that_follow_co_occurrence(prepared: Path, planted: Sequences) -> None:
    for name in ("fused", "text", "rqvae"):
        sid = np.load(prepared / f"sid_{name}_1.npy")
        assert sid.shape == (planted.num_items, 3) and len(np.unique(sid, axis=0)) == planted.num_items
    content = np.load(prepared / "content.npy").astype(np.float32)
    text, collaborative = content[:, :47], content[:, 47:]
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-2)
    near = np.mean([collaborative[i] @ collaborative[(i + 1) % 48] for i in range(48)])
    far = np.mean([collaborative[i] @ collaborative[(i + 24) % 48] for i in range(48)])
    assert near > far + 0.15  # neighbours on the ring share users, opposites do not


def test_nothing_of_validation_or_test_is_in_the_ids(prepared: Path, planted: Sequences, tmp_path: Path) -> None:
    items = planted.items.copy()
    for end in planted.offsets[1:]:
        items[end - 2 : end] = items[end - 2 : end][::-1]
    Sequences(items=items, offsets=planted.offsets, num_items=planted.num_items).save(tmp_path)
    (tmp_path / "text.npy").write_bytes((prepared / "text.npy").read_bytes())
    make_ids(tmp_path, [1], progress=lambda line: None)
    for name in ("content.npy", "sid_fused_1.npy", "sid_text_1.npy"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes(), name


def test_texts_take_what_a_set_has() -> None:
    both = {"title": "OPI Lacquer", "categories": [["Beauty", "Nails", "Polish"]], "keywords": ["shimmer"]}
    assert item_text(both) == "OPI Lacquer. Nails, Polish. shimmer"
    assert item_text({"title": None, "categories": None, "short_text": "gun mat", "keywords": []}) == "gun mat"


def test_transitions_count_forward_by_distance() -> None:
    s = Sequences(items=np.array([0, 1, 2, 0, 3, 0, 1, 0, 3]), offsets=np.array([0, 5, 9]), num_items=4)
    found = transitions(s).toarray()
    assert found[0].tolist() == [0, 2, 0.5, 0] and found[1].tolist() == [0, 0, 1, 0]
    assert found[2:].sum() == 0  # the last two items of each user are held out


def test_candidates_get_the_co_occurrence_of_the_floor(planted: Sequences) -> None:
    """The keys' look-up equals the sparse product, and weights a padded place with nothing."""
    history = torch.tensor([[planted.num_items, 4, 7], [1, 2, 3]])
    every = torch.arange(planted.num_items).expand(2, -1)
    found = Follows(planted, CPU).log_score(history, every)
    counts = transitions(planted).toarray()
    np.testing.assert_allclose(found[0], np.log(0.1 + counts[7] + 0.5 * counts[4]), rtol=1e-5)
    np.testing.assert_allclose(found[1], np.log(0.1 + counts[3] + 0.5 * counts[2] + 0.25 * counts[1]), rtol=1e-5)


def test_floors_know_the_ring_or_do_not(planted: Sequences) -> None:
    follow, popular = means(co_occurrence(planted, "test")), means(most_popular(planted, "test"))
    assert follow["recall@5"] > 0.8 > 0.4 > popular["recall@5"]


def test_floors_of_the_public_sets(amazon: Path) -> None:
    """Pinned: another number means that protocol or recipe changed."""
    beauty = Sequences.read_text(amazon / "beauty" / "sequences.txt")
    assert (beauty.users, beauty.num_items) == (22363, 12101)
    assert means(most_popular(beauty, "test"))["recall@10"] == pytest.approx(0.0115, abs=2e-4)
    for raw, numbers in ((False, [0.0570, 0.0773, 0.0429, 0.0495]), (True, [0.0592, 0.0787, 0.0436, 0.0499])):
        found = means(co_occurrence(beauty, "test", raw=raw))
        assert [found[m] for m in METRICS] == pytest.approx(numbers, abs=2.5e-4)


def test_a_row_runs_from_the_prepared_folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Variant(title="small", options=OneRecSequences(d_model=32, encoder_layers=1, decoder_layers=1))
    monkeypatch.setitem(variants.VARIANTS, "small", small)
    quiet = {"epochs": 5, "progress": lambda line: None}
    found = run_variant("small", prepared, 1, CPU, test=True, **quiet)
    assert found["set"] == "toy" and found["epochs"] == 5 and len(found["curve"]) == 1
    assert found["test"] == found["test_by_weight"]["1 0"] and set(found["test"]) == set(METRICS)
    for metric, (low, high) in found["test_interval"].items():
        assert low <= found["test"][metric] <= high
    monkeypatch.setitem(variants.VARIANTS, "onerec", small)
    text = parts_of_score([found | {"variant": "onerec"}]) + intervals([found | {"variant": "onerec"}], ["onerec"])
    both = " | ".join(f"{found['test'][m]:.4f}" for m in ORDER)
    assert f": OneRec | {both} |" in text and f"| small | {found['test_interval'][ORDER[0]][0]:.4f} to" in text
    assert "test" not in run_variant("small", prepared, 1, CPU, **quiet)
    again = run_variant("small", prepared, 1, CPU, test=True, **quiet)
    assert again["test"] == found["test"]  # seeded
    with pytest.raises(ValueError, match="sid_fused_9"):
        run_variant("small", prepared, 9, CPU, **quiet)
    with pytest.raises(ValueError, match="no variant 'nothing'"):
        run_variant("nothing", prepared, 1, CPU, **quiet)


def test_every_variant_is_a_valid_configuration() -> None:
    assert len({v.title for v in VARIANTS.values()}) == len(VARIANTS)
    for variant in VARIANTS.values():
        assert variant.options.sizes(128, 1000).items == 1000


def test_the_search_names_the_weights_with_the_best_mean() -> None:
    a = {"1 0": {"ndcg@10": 0.05}, "1 0.5": {"ndcg@10": 0.08}, "inf 2": {"ndcg@10": 0.07}}
    b = {"1 0": {"ndcg@10": 0.05}, "1 0.5": {"ndcg@10": 0.03}, "inf 2": {"ndcg@10": 0.06}}
    found = [{"variant": "onerec", "validation_by_weight": x} for x in (a, b)]
    assert best_weights(found, "onerec") == ["OneRec", "inf", "2", "0.0650"]
    assert best_weights(found, "sasrec")[1:] == ["-", "-", "-"]


def test_the_table_marks_the_best_of_each_column() -> None:
    numbers = dict.fromkeys(METRICS, 0.05)
    results = [{"variant": "onerec", "test": {k: v + d for k, v in numbers.items()}} for d in (0.0, 0.002)]
    rows = [("other", "paper", [0.06, None, 0.01, 0.02], []), *gather(results, ["onerec"])]
    text = markdown(rows)
    assert "| other | **.0600** | - | .0100 | .0200 | paper |" in text
    assert "| OneRec | .0510 ± .0014 | **.0510** ± .0014 |" in text


def test_the_gap_of_sasrec_is_told_by_set_and_variant(tmp_path: Path) -> None:
    for seed, value in ((1, 0.08), (2, 0.09)):
        result = {"test": dict.fromkeys(ORDER, value), "best_epoch": 9 + seed, "device": "a card"}
        (tmp_path / f"beauty_sasrec_mixed_{seed}_test.json").write_text(json.dumps(result))
    text, every = sasrec_gap.page(tmp_path)
    assert len(every) == 2
    assert "0.0850 ± 0.0071" in text and "| 10, 11 |" in text and "(published) | - | - | 0.0921 | 0.0531 |" in text
    with pytest.raises(ValueError, match="holds no results"):
        sasrec_gap.page(tmp_path / "empty")
