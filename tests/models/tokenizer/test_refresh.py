"""The daily tokenizer step: bootstrap, a second day with new items, determinism of every file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from models.tokenizer.aligned import AlignedConfig
from models.tokenizer.alignment import AlignmentConfig
from models.tokenizer.qformer import ItemEncoderConfig
from models.tokenizer.refresh import codebook_size_for, refresh_tokenizer
from models.tokenizer.representation import Representation, content_matrix
from models.training.checkpoint import Tokenizer
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
    spread = np.square(vectors - vectors.mean(0)).sum(1).mean()
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


def test_the_aligned_representation_names_new_items_without_training_again(world, tmp_path, monkeypatch):
    """Its encoder travels frozen in codebooks.safetensors; known IDs stay, a second day aligns nothing."""
    encoder = ItemEncoderConfig(dim=16, queries=2, layers=1, heads=2)
    short = AlignmentConfig(encoder=encoder, batch=32, steps=10, caption_weight=0.0)
    monkeypatch.setattr("models.tokenizer.refresh.named_config", {"aligned": AlignedConfig(alignment=short)}.get)
    (tmp_path / "a").mkdir()
    about = {"training_sets": world.training, "seed": 3, "progress": lambda _: None}
    refresh_tokenizer(items=world.items, previous=None, out=tmp_path / "a", representation="aligned", **about)
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
