"""The trie against Python sets of the same catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
        assert all(torch.equal(a, b) for a, b in zip(getattr(trie, name), getattr(again, name)))
    assert again.lookup(torch.from_numpy(sid)).tolist() == list(range(50))
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "trie.safetensors").read_bytes()
