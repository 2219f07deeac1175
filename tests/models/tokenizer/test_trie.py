"""The trie against Python sets of the same catalogue."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.tokenizer import trie as trie_module
from models.tokenizer.trie import Trie
from tests.models.conftest import small_sids


def _children(trie: Trie, node: int, level: int) -> dict[int, int]:
    code, child, real = trie.children(torch.tensor([node]), level)
    return {int(c): int(n) for c, n, ok in zip(code[0], child[0], real[0]) if ok}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), k=st.integers(1, 6))
def test_random_catalogues(data, k):
    space = st.tuples(*[st.integers(0, k - 1)] * 3)
    rows = data.draw(st.lists(space, min_size=1, max_size=40, unique=True))
    trie = Trie.build(np.array(rows), k)
    every = np.stack(np.meshgrid(*[np.arange(k)] * 3, indexing="ij"), -1)
    found = trie.lookup(torch.from_numpy(every)).numpy()
    expected = {row: index for index, row in enumerate(rows)}
    assert found.tolist() == [[[expected.get((a, b, c), -1) for c in range(k)] for b in range(k)] for a in range(k)]
    roots = _children(trie, 0, 0)
    assert set(roots) == {row[0] for row in rows}
    for a, node_a in roots.items():
        seconds = _children(trie, node_a, 1)
        assert set(seconds) == {row[1] for row in rows if row[0] == a}
        for b, node_b in seconds.items():
            leaves = _children(trie, node_b, 2)
            assert set(leaves) == {row[2] for row in rows if row[:2] == (a, b)}
            assert all(int(trie.item[leaf]) == expected[(a, b, c)] for c, leaf in leaves.items())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), k=st.integers(1, 6))
def test_nodes_of_prefixes_and_codes_of_leaves(data, k):
    rows = data.draw(st.lists(st.tuples(*[st.integers(0, k - 1)] * 3), min_size=1, max_size=40, unique=True))
    trie = Trie.build(np.array(rows, np.int16), k)
    for depth in range(4):
        nodes = {prefix: n for n, prefix in enumerate(sorted({row[:depth] for row in rows}))}
        every = np.array(list(itertools.product(range(-1, k + 1), repeat=depth)), np.int64).reshape(
            (k + 2) ** depth, depth
        )
        found = trie.node(torch.from_numpy(every)).tolist()
        assert found == [nodes.get(tuple(prefix), -1) for prefix in every.tolist()]
    leaves = torch.arange(len(rows))
    assert trie.codes(leaves).tolist() == [list(rows[i]) for i in trie.item.tolist()]
    assert torch.equal(trie.lookup(trie.codes(leaves)), trie.item.long())


def test_a_trie_built_from_the_table_on_disk_is_the_same_and_small(tmp_path, monkeypatch):
    """Also where prefixes are searched for in several blocks; 12 bytes a leaf and 6 a node."""
    sid = small_sids(3000, 32, 2)
    columns = {f"c{i}": pa.array(sid[:, i], pa.int32()) for i in range(3)}
    pq.write_table(pa.table({"item_id": pa.array(range(3000), pa.int64()), **columns}), tmp_path / "sid.parquet")
    whole = Trie.build(sid, 32)
    monkeypatch.setattr(trie_module, "BLOCK", 100)
    trie = Trie.from_table(tmp_path / "sid.parquet", 32)
    for a, b in zip([*whole.first, *whole.code, whole.key, whole.item], [*trie.first, *trie.code, trie.key, trie.item]):
        assert torch.equal(a, b)
    trie.save(tmp_path / "trie.safetensors")
    nodes = sum(len(np.unique(sid[:, :depth], axis=0)) for depth in (1, 2))
    assert (tmp_path / "trie.safetensors").stat().st_size <= 12 * 3000 + 6 * nodes + 2000


def test_a_loaded_trie_is_a_memory_map(tmp_path):
    Trie.build(small_sids(50, 8, 1), 8).save(tmp_path / "trie.safetensors")
    trie = Trie.load(tmp_path / "trie.safetensors", 8)
    assert len(trie.key) == 50
    assert str(tmp_path / "trie.safetensors") in Path("/proc/self/maps").read_text()


def test_a_trie_of_another_layout_or_codebook_is_refused_by_name(tmp_path):
    Trie.build(small_sids(50, 8, 1), 8).save(tmp_path / "trie.safetensors")
    with pytest.raises(ValueError, match="is of 8 codes a level, the codebooks have 16"):
        Trie.load(tmp_path / "trie.safetensors", 16)
    save_file({"first_0": torch.zeros(2), "item": torch.zeros(1)}, tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match="earlier layout"):
        Trie.load(tmp_path / "old.safetensors", 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    sid = small_sids(3000, 32, 2)
    trie = Trie.build(sid, 32)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 32, (5000, 3)))
    there = trie.to("cuda")
    assert torch.equal(there.lookup(codes.cuda()).cpu(), trie.lookup(codes))
    assert torch.equal(there.node(codes[:, :2].cuda()).cpu(), trie.node(codes[:, :2]))


@pytest.mark.parametrize("codes", [[0, 4, 1], [-1, 5, 1], [1, 0, -3], [4, 0, 0], [0, 0, 17]])
def test_a_code_outside_the_codebook_is_illegal(codes):
    # Every tuple of 4 codes exists, so a wrong code must not be carried into its neighbour's place.
    sid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert int(Trie.build(sid, 4).lookup(torch.tensor(codes))) == -1


def test_lookup_of_int32_codes_at_the_published_codebook_size():
    sid = np.random.default_rng(0).integers(0, 8192, (500, 3))
    trie = Trie.build(sid, 8192)
    assert trie.lookup(torch.from_numpy(sid.astype(np.int32))).tolist() == list(range(500))


def test_refuses_what_is_no_catalogue():
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] belongs to several items"):
        Trie.build(np.array([[1, 2, 3], [0, 0, 0], [1, 2, 3]]), 4)
    with pytest.raises(ValueError, match=r"the codebook has 0\.\.3"):
        Trie.build(np.array([[0, 0, 4]]), 4)
    with pytest.raises(ValueError, match="empty"):
        Trie.build(np.empty((0, 3), np.int64), 4)


def test_save_and_load_give_the_same_trie(tmp_path):
    sid = small_sids(50, 8, 1)
    trie = Trie.build(sid, 8)
    trie.save(tmp_path / "trie.safetensors")
    again = Trie.load(tmp_path / "trie.safetensors", 8)
    assert again.max_children == trie.max_children
    for name in ("first", "code"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(trie, name), getattr(again, name), strict=True))
    assert again.lookup(torch.from_numpy(sid)).tolist() == list(range(50))
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "trie.safetensors").read_bytes()
