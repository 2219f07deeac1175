"""The daily tokenizer step: bootstrap, a second day with new items, determinism of every file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.tokenizer import refresh
from models.tokenizer.aligned import AlignedConfig
from models.tokenizer.alignment import AlignmentConfig
from models.tokenizer.carry import CARRY, Carry
from models.tokenizer.qformer import ItemEncoderConfig
from models.tokenizer.refresh import RefreshConfig, refresh_tokenizer
from models.tokenizer.representation import Representation, content_matrix
from models.tokenizer.state import codebook_size_for
from models.training.checkpoint import Tokenizer, load_model, load_optimizer, load_weights, save_model, save_weights
from models.training.optimizer import make_optimizer
from models.training.pretrain import PretrainConfig, pretrain
from tests.models.conftest import World, write_items

FILES = {"codebooks.safetensors", "sid_table.parquet", "tokenizer.json", "trie.safetensors"}


def _refresh(
    world: World, out: Path, *, items: Path | None = None, previous: Path | None = None, seed: int = 3
) -> dict:
    out.mkdir(parents=True)
    return refresh_tokenizer(
        items=items or world.items,
        training_sets=world.training,
        previous=previous,
        out=out,
        seed=seed,
        progress=lambda _: None,
    )


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _ids(folder: Path) -> dict[int, tuple[int, ...]]:
    table = pq.read_table(folder / "sid_table.parquet")
    codes = zip(*(table[c].to_pylist() for c in ("c0", "c1", "c2")))
    return dict(zip(table["item_id"].to_pylist(), codes))


@pytest.mark.parametrize("items, size", [(1, 16), (256, 16), (257, 32), (7583, 128), (10**9, 8192)])
def test_codebook_size(items, size):
    assert codebook_size_for(items) == size


def test_bootstrap_names_every_item_once_and_reports(world, tmp_path):
    report = _refresh(world, tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} == FILES
    ids = _ids(tmp_path / "a")
    assert sorted(ids) == list(range(48))
    assert len(set(ids.values())) == 48
    assert report["items"] == report["new_items"] == 48
    assert report["refit"] and report["codebook_size"] == 16
    assert report["collision_rate_after"] == 0.0 <= report["collision_rate_before"]
    assert 0 <= report["reconstruction_loss"] < 1
    tokenizer = Tokenizer.load(tmp_path / "a")
    codes = torch.tensor([ids[int(i)] for i in tokenizer.catalogue.item_ids])
    assert tokenizer.trie.lookup(codes).tolist() == list(range(48))


def test_same_seed_same_bytes(world, tmp_path):
    _refresh(world, tmp_path / "a")
    _refresh(world, tmp_path / "b")
    _refresh(world, tmp_path / "c", seed=4)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b") != _digests(tmp_path / "c")


def test_second_day_keeps_every_old_id_and_names_the_new(world, tmp_path):
    # Ids before, between and after the old ones; item 0 has left the catalogue of the day.
    items = write_items(tmp_path / "items.parquet", [-5, *range(1, 48), 1000, 100, 500])
    reports = [_refresh(world, tmp_path / n, items=items, previous=world.tokenizer) for n in ("a", "b")]
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    old, new = _ids(world.tokenizer), _ids(tmp_path / "a")
    assert {i: new[i] for i in old} == old
    assert set(new) - set(old) == {-5, 100, 500, 1000}
    assert len(set(new.values())) == len(new)
    assert list(new)[: len(old)] == list(old)  # new items stand behind: catalogue indices do not move
    assert reports[0]["items"] == 52 and reports[0]["new_items"] == 4 and not reports[0]["refit"]


def test_a_later_day_measures_its_new_items_only(world, tmp_path):
    """Two new items without any content have the same vector and collide; the 48 known ones do not dilute that."""
    items = write_items(tmp_path / "items.parquet", [*range(48), 66, 73])  # ids 3 modulo 7 are bare
    report = _refresh(world, tmp_path / "a", items=items, previous=world.tokenizer)
    assert report["new_items"] == 2 and report["changed_ids"] == 0
    assert report["collision_rate_before"] == 1.0 and report["collision_rate_after"] == 0.0
    tensors = load_file(tmp_path / "a" / "codebooks.safetensors")
    table = pq.read_table(items)
    content = content_matrix(
        [t or [] for t in table["tags"].to_pylist()],
        table["author_id"].to_numpy(),
        [t or "" for t in table["caption"].to_pylist()],
    )
    vectors = Representation({k: v for k, v in tensors.items() if "codebook" not in k}).content_only(content)
    ids, error = _ids(tmp_path / "a"), []
    for item in (66, 73):
        rebuilt = sum(tensors[f"codebook_{i}"][ids[item][i]] for i in range(3))
        error.append(np.square(vectors[table["item_id"].to_pylist().index(item)] - rebuilt).sum())
    spread = json.loads((world.tokenizer / "tokenizer.json").read_text())["fit"]["variance"]
    assert report["reconstruction_loss"] == pytest.approx(np.mean(error) / spread, rel=1e-4)


def test_an_id_that_changes_is_counted(world, tmp_path, monkeypatch):
    """The written table is what is compared: a step that mixed up its rows would say so."""
    write = pq.write_table
    monkeypatch.setattr(
        pq,
        "write_table",
        lambda table, path: write(table.set_column(0, "item_id", table["item_id"].take(list(range(47, -1, -1)))), path),
    )
    assert _refresh(world, tmp_path / "a", previous=world.tokenizer)["changed_ids"] == 48


def test_a_day_without_new_items_gives_the_same_table(world, tmp_path):
    report = _refresh(world, tmp_path / "a", previous=world.tokenizer, seed=99)
    assert report["new_items"] == report["changed_ids"] == 0
    assert report["reconstruction_loss"] is None and report["collision_rate_before"] == 0.0
    for name in FILES - {"tokenizer.json"}:  # tokenizer.json names the seed
        assert (tmp_path / "a" / name).read_bytes() == (world.tokenizer / name).read_bytes()


def test_codebooks_of_a_later_day_are_the_frozen_ones(world, tmp_path):
    items = write_items(tmp_path / "items.parquet", list(range(60)))
    _refresh(world, tmp_path / "a", items=items, previous=world.tokenizer)
    name = "codebooks.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (world.tokenizer / name).read_bytes()


def test_an_empty_items_table_is_refused(world, tmp_path):
    items = write_items(tmp_path / "items.parquet", [])
    with pytest.raises(ValueError, match="holds no items"):
        _refresh(world, tmp_path / "a", items=items)


def test_more_items_than_codes_is_refused(world, tmp_path):
    items = write_items(tmp_path / "items.parquet", list(range(16**3 + 1)))
    with pytest.raises(ValueError, match="4097 items do not fit"):
        _refresh(world, tmp_path / "a", items=items, previous=world.tokenizer)


def test_a_trie_of_another_tokenizer_is_refused(world, tmp_path):
    _refresh(world, tmp_path / "a", seed=4)
    (tmp_path / "a" / "trie.safetensors").write_bytes((world.tokenizer / "trie.safetensors").read_bytes())
    with pytest.raises(ValueError, match="trie and SID table differ"):
        Tokenizer.load(tmp_path / "a")


def test_items_of_one_topic_share_first_codes_more_than_chance(world):
    """The codes mean something: items of the same topic are nearer in the code tree."""
    ids = _ids(world.tokenizer)
    first, topic = np.array([ids[i][0] for i in range(48)]), np.arange(48) % 4
    same_code = first[:, None] == first[None]
    same_topic = topic[:, None] == topic[None]
    off = ~np.eye(48, dtype=bool)
    assert same_topic[same_code & off].mean() > 0.6 > 0.3 > same_topic[off].mean()


def test_text_columns_may_be_missing(world, tmp_path):
    table = pq.read_table(world.items).drop_columns(["caption"])
    assert isinstance(table, pa.Table)
    pq.write_table(table, tmp_path / "items.parquet")
    assert _refresh(world, tmp_path / "a", items=tmp_path / "items.parquet")["items"] == 48


@pytest.fixture
def model(world, tmp_path) -> Path:
    """A saved model of the world's tokenizer, untrained."""
    tokenizer, out = Tokenizer.load(world.tokenizer), tmp_path / "model"
    config = onerec_laptop(codebook_size=16, items=48, static_features=3)
    out.mkdir()
    save_model(OneRec(config, torch.from_numpy(tokenizer.sid_NL)), out)
    return out


def _edited(world: World, path: Path, ids: list[int]) -> Path:
    """The items with another caption for some of them."""
    table = pq.read_table(world.items)
    captions = [
        f"entirely new words {i}" if i in ids else c
        for i, c in zip(table["item_id"].to_pylist(), table["caption"].to_pylist(), strict=True)
    ]
    at = table.column_names.index("caption")
    pq.write_table(table.set_column(at, "caption", pa.array(captions, pa.string())), path)
    return path


def test_only_new_and_changed_items_are_represented_and_assigned(world, tmp_path, monkeypatch):
    """Work is counted in rows; IDs of all others stay, and the table remembers the new content."""
    table = pq.read_table(_edited(world, tmp_path / "edited.parquet", [4, 9]))
    more = pq.read_table(write_items(tmp_path / "more.parquet", [100, 101, 102])).cast(table.schema)
    pq.write_table(pa.concat_tables([table, more]), tmp_path / "items.parquet")
    rows = {"content": 0, "encode": 0}
    represent, encode = refresh.represent, refresh.rq_kmeans.encode
    monkeypatch.setattr(
        refresh, "represent", lambda x, **k: rows.update(content=rows["content"] + len(x)) or represent(x, **k)
    )
    monkeypatch.setattr(
        refresh.rq_kmeans, "encode", lambda x, b: rows.update(encode=rows["encode"] + len(x)) or encode(x, b)
    )
    report = _refresh(world, tmp_path / "a", items=tmp_path / "items.parquet", previous=world.tokenizer)
    assert rows == {"content": 5, "encode": 5}
    assert report["changed_items"] == 2 and report["new_items"] == 3 and report["named_items"] == 5
    old, new = _ids(world.tokenizer), _ids(tmp_path / "a")
    assert {i for i in old if old[i] != new[i]} <= {4, 9}
    assert report["changed_ids"] == sum(old[i] != new[i] for i in old) > 0 == report["moved_ids"]
    assert len(set(new.values())) == 51 and not [g for g in report["gates"] if g["passed"] is False]
    again = _refresh(world, tmp_path / "b", items=tmp_path / "items.parquet", previous=tmp_path / "a")
    assert again["named_items"] == again["changed_ids"] == 0 and not (tmp_path / "b" / CARRY).exists()


def test_an_edited_item_is_carried_into_the_model(world, model, tmp_path):
    """Its ID changes, so yesterday's weights belong to another table; the carry lets them in, and only them."""
    items = _edited(world, tmp_path / "items.parquet", list(range(0, 40, 3)))
    assert _refresh(world, tmp_path / "a", items=items, previous=world.tokenizer)["changed_ids"]
    tokenizer, old = Tokenizer.load(tmp_path / "a"), Tokenizer.load(world.tokenizer)
    before, after = load_model(model, old), load_model(model, tokenizer)
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]) == (name != "sid_NL")
    assert torch.equal(after.sid_NL[:-1], torch.from_numpy(tokenizer.sid_NL))
    save_weights(after, tmp_path / "model.safetensors")
    assert tokenizer.carries(tmp_path / "model.safetensors") is None
    with pytest.raises(ValueError, match="belongs to another tokenizer"):
        load_weights(tmp_path / "model.safetensors", old, 48)


def test_a_refit_keeps_labels_and_places_and_reports_its_churn(world, tmp_path):
    """Other interactions turn the space; still most items keep their first code, far more than by chance."""
    items = write_items(tmp_path / "items.parquet", [*range(1, 48), 100])  # item 0 has left, 100 is new
    out = tmp_path / "a"
    out.mkdir()
    report = refresh_tokenizer(
        items=items, training_sets=world.training[:1], previous=world.tokenizer, out=out, seed=8, refit=True,
        progress=lambda _: None,
    )  # fmt: skip
    old, new = _ids(world.tokenizer), _ids(out)
    assert report["refit"] and report["refit_reason"] == "requested" and report["moved_ids"] == 0
    assert list(new) == [*old, 100] and len(set(new.values())) == 49
    same = [np.mean([old[i][: d + 1] == new[i][: d + 1] for i in old]) for d in range(3)]
    assert report["churn"] == pytest.approx([1 - s for s in same])
    assert same[0] > 0.5
    carry = Carry.load(out / CARRY)
    assert carry is not None and [s.tolist() for s in carry.source] == [list(range(16))] * 3
    assert Tokenizer.load(out).carry is not None


def test_drift_beyond_its_limit_refits_and_names_the_reason(world, tmp_path, monkeypatch):
    """Items of a new kind arrive; held-out items of the fit say what is usual."""
    monkeypatch.setattr(refresh, "MIN_TO_HOLD", 10)
    monkeypatch.setattr(refresh, "HELD_OUT", 0.3)
    _refresh(world, tmp_path / "fit")
    fit = json.loads((tmp_path / "fit" / "tokenizer.json").read_text())["fit"]
    assert fit["held_out_error"] > 0 and fit["items_since"] == 0
    items = write_items(tmp_path / "items.parquet", list(range(60)))
    calm = _refresh(world, tmp_path / "calm", items=items, previous=tmp_path / "fit")
    assert not calm["refit"] and calm["drift"] > 0
    now = json.loads((tmp_path / "calm" / "tokenizer.json").read_text())["fit"]
    assert now["items_since"] == 12
    assert calm["drift"] == pytest.approx(now["error_since"] / 12 / now["held_out_error"])
    out = tmp_path / "drifted"
    out.mkdir()
    low = RefreshConfig(drift_limit=calm["drift"] * 0.9, drift_items=12)
    report = refresh_tokenizer(
        items=items, training_sets=world.training, previous=tmp_path / "fit", out=out, seed=3, config=low,
        progress=lambda _: None,
    )  # fmt: skip
    assert report["refit"] and report["refit_reason"].startswith("drift ") and report["churn"]
    assert json.loads((out / "tokenizer.json").read_text())["fit"]["items_since"] == 0


def test_a_larger_codebook_after_a_refit_starts_from_the_old_embeddings(world, model, tmp_path):
    items = write_items(tmp_path / "items.parquet", list(range(300)))
    out = tmp_path / "a"
    out.mkdir()
    report = refresh_tokenizer(
        items=items, training_sets=world.training, previous=world.tokenizer, out=out, seed=8, refit=True,
        progress=lambda _: None,
    )  # fmt: skip
    assert report["codebook_size"] == 32
    tokenizer, carry = Tokenizer.load(out), Carry.load(out / CARRY)
    old = load_model(model, Tokenizer.load(world.tokenizer))
    new = load_model(model, tokenizer)
    assert new.config.codebook_size == 32 and new.config.items == 300
    for level in range(3):
        source = torch.from_numpy(carry.source[level])
        assert source[:16].tolist() == list(range(16))
        assert torch.equal(new.code[level].weight[:-1], old.code[level].weight[:-1][source])


def test_the_aligned_representation_names_new_items_without_training_again(world, tmp_path, monkeypatch):
    """Its encoder travels frozen in codebooks.safetensors; known IDs stay, a second day aligns nothing."""
    encoder = ItemEncoderConfig(dim=16, queries=2, layers=1, heads=2)
    short = AlignmentConfig(encoder=encoder, batch=32, steps=10, caption_weight=0.0)
    monkeypatch.setattr("models.tokenizer.refresh.named_config", {"aligned": AlignedConfig(alignment=short)}.get)
    (tmp_path / "a").mkdir()
    about = {"training_sets": world.training, "seed": 3, "progress": lambda _: None}
    about["config"] = RefreshConfig(representation="aligned")
    refresh_tokenizer(items=world.items, previous=None, out=tmp_path / "a", **about)
    monkeypatch.setattr("models.tokenizer.aligned.align", lambda *a, **k: pytest.fail("aligned again"))
    items = write_items(tmp_path / "items.parquet", [*range(48), 100, 101])
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        report = refresh_tokenizer(items=items, previous=tmp_path / "a", out=tmp_path / name, **about)
    assert report["new_items"] == 2 and report["changed_ids"] == 0
    old, new = _ids(tmp_path / "a"), _ids(tmp_path / "b")
    assert {i: new[i] for i in old} == old and {100, 101} <= set(new)
    assert _digests(tmp_path / "b") == _digests(tmp_path / "c")
    books = {p: load_file(tmp_path / p / "codebooks.safetensors") for p in "ab"}
    assert "aligned.about" in books["a"] and books["a"].keys() == books["b"].keys()


def test_training_goes_on_after_a_refit(world, tmp_path):
    """Pre-trained with the tokenizer of the world, then a day with the refitted one: weights and moments follow."""
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "refit"
    for folder in (first, second, out):
        folder.mkdir()
    quick = PretrainConfig(min_steps=3, batch_size=32, max_targets=2)
    common = {"seed": 1, "config": quick, "progress": lambda _: None}
    pretrain(training_sets=world.training[:1], tokenizer=world.tokenizer, previous=None, out=first, **common)
    items = write_items(tmp_path / "items.parquet", list(range(300)))  # so many that the codebook grows
    refresh_tokenizer(
        items=items, training_sets=world.training, previous=world.tokenizer, out=out, seed=8, refit=True,
        progress=lambda _: None,
    )  # fmt: skip
    tokenizer = Tokenizer.load(out)
    assert tokenizer.codebook_size == 32
    model = load_model(first, tokenizer)
    optimizer, names = make_optimizer(
        model, lr_sparse=quick.lr_sparse, lr_dense=quick.lr_dense, weight_decay=quick.weight_decay
    )
    load_optimizer(
        optimizer, names, first / "optimizer.safetensors", 300, tokenizer.carries(first / "model.safetensors")
    )
    moment = optimizer.state[model.code[0].weight]["exp_avg"]
    old = load_torch(first / "optimizer.safetensors")["exp_avg/code.0.weight"]
    assert torch.equal(moment[:-1], old[:-1][torch.from_numpy(tokenizer.carry.source[0])])
    report = pretrain(training_sets=world.training[1:], tokenizer=out, previous=first, out=second, **common)
    assert np.isfinite(report["loss"][-1]["loss"])
    assert load_model(second, tokenizer).config.codebook_size == 32
