"""Table gradients by sorting against autograd's own, in float64; hashed items stay in their table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.onerec import embedding
from models.onerec.embedding import HashedItems, LookupSum, Table


@pytest.mark.parametrize("rows", [1, 3, 50, 5000])
@pytest.mark.parametrize("shape", [(0,), (7,), (4, 33)])
def test_sums_and_gradients_of_several_tables(rows, shape):
    tables = [torch.randn(rows, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    index = torch.randint(rows, (*shape, 3))
    seed = torch.randn(*shape, 8, dtype=torch.float64)
    ours = LookupSum.apply(index, *tables)
    got = torch.autograd.grad((ours * seed).sum(), tables)
    reference = sum(F.embedding(index[..., i], t) for i, t in enumerate(tables))
    expected = torch.autograd.grad((reference * seed).sum(), tables)
    torch.testing.assert_close(ours, reference, rtol=0, atol=0)
    for g, e in zip(got, expected):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def test_the_operator_describes_its_result():
    """The shape a compiler is told is the shape that comes, for a gradient that is a slice of a wider one as well."""
    wide = torch.randn(9, 24)
    torch.library.opcheck(embedding.embedding_gradient, (wide[:, 8:16], torch.randint(5, (9, 2)), 5))


def test_a_table_is_an_embedding():
    torch.manual_seed(1)
    ours = Table(6, 8)
    torch.manual_seed(1)
    theirs = torch.nn.Embedding(6, 8)
    index = torch.tensor([[5, 0], [2, 2]])
    torch.testing.assert_close(ours(index), theirs(index), rtol=0, atol=0)


def test_hashed_items_share_no_row_with_the_unknown_item_and_spread():
    table = HashedItems(1 << 12, 8)
    with torch.no_grad():
        table.table.weight[0] = 7.0
        rows = table(torch.arange(2000), items=2000)
        unknown = table(torch.tensor([2000, 2345]), items=2000)
    assert (unknown == 7.0).all() and not (rows == 7.0).all(1).any()
    assert len(rows.unique(dim=0)) > 0.75 * 2000  # 2000 balls in 4095 urns leave 1586 filled on average
