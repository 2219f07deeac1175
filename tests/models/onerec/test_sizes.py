"""Named sizes against the published ones, and FLOPs against torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.onerec.flops import count_parameters, forward_flops, train_flops
from models.onerec.model import OneRec
from models.onerec.sizes import (
    SIZES,
    lazy,
    onerec_0_015b,
    onerec_0_121b,
    onerec_0_935b,
    onerec_2_633b,
    onerec_laptop,
    session,
)
from tests.models.conftest import small_sids

GIVEN = {"items": 100, "static_features": 26}
PUBLISHED = {onerec_0_015b: 15e6, onerec_0_121b: 121e6, onerec_0_935b: 935e6, onerec_2_633b: 2633e6}


@pytest.mark.parametrize("size", PUBLISHED, ids=lambda f: f.__name__)
def test_parameters_of_the_published_sizes(size):
    """Code tables and layers, counted as built, miss every published size by the same 10 to 12.4 million.

    So the report seems to count one set of tables whose width does not follow d_model (its uid, author and feature
    embeddings, not described), and not the pathways' projections and QFormer: at d 1024 those alone are 29.9 million of
    ours, which 0.121B has no room for.
    """
    count = count_parameters(size(**GIVEN))
    backbone = count["codes"] + count["layers"]
    assert 10e6 < PUBLISHED[size] - backbone < 12.4e6 or size is onerec_2_633b
    assert backbone + 11.7e6 == pytest.approx(PUBLISHED[size], rel=0.04)
    if size is not onerec_0_015b:  # at 15 million the common tables are most of it
        assert sum(count.values()) == pytest.approx(PUBLISHED[size], rel=0.22 if size is onerec_0_121b else 0.03)


def test_where_the_report_disagrees_with_itself():
    """Its table prints 2048 as the experts' width, its text 8/3 of d_model: only the text makes 0.935B.

    With the text's width in every layer of the 2.633B model there would be twice as many parameters; with the table's
    in 8 of 12 layers of each half the number is met.
    """

    def layers(config, **changes):
        count = count_parameters(dataclasses.replace(config, **changes))
        return count["codes"] + count["layers"] + 11.7e6

    moe, large = onerec_0_935b(**GIVEN), onerec_2_633b(**GIVEN)
    assert layers(moe) == pytest.approx(935e6, rel=0.001)
    assert layers(moe, expert_dim=2048) == pytest.approx(708e6, rel=0.005)
    assert layers(large) == pytest.approx(2633e6, rel=0.003)
    everywhere = {"encoder_moe_layers": 12, "decoder_dense_layers": 0, "expert_dim": 2816}
    assert layers(large, **everywhere) > 5e9


@pytest.mark.parametrize("size", PUBLISHED, ids=lambda f: f.__name__)
def test_published_context(size):
    config = size(**GIVEN)
    assert config.positions == 405 and config.decoder_tokens == 3
    assert lazy(config).positions == 1 + 20 + 256 + 2000
    assert session(config).decoder_tokens == 19  # five items, BOS and three codes each, without the very last code


def _small(**changes):
    config = onerec_laptop(codebook_size=16, items=40, static_features=3)
    small = {"d_model": 32, "decoder_dense_layers": 2, "short_len": 5, "positive_len": 6, "lifelong_len": 9}
    return dataclasses.replace(config, **(small | changes))


@pytest.mark.parametrize("form", ["point-wise", "session-wise", "lazy", "event head"])
def test_flops_equal_torchs_count(form):
    """Dense layers only: torch counts a grouped product as it likes, ours counts active experts."""
    config = _small(event_head=form == "event head")
    if form == "session-wise":
        config = session(config, 3)
    elif form == "lazy":
        config = dataclasses.replace(lazy(config), decoder_dense_layers=4)
    model = OneRec(config, torch.from_numpy(small_sids(40, 16, 0))).eval()
    batch = {"static": torch.zeros(2, 3, dtype=torch.long)}
    for name, n in (("short", 5), ("positive", 6), ("lifelong", 9)):
        batch[name] = torch.zeros(2, n, 7, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        z, mask = model.encode(batch)
        model.code_logits(torch.zeros(2, 6, 3, dtype=torch.long), z, mask)
        if config.item_head:
            model.item_logits(z)
        served = counter.get_total_flops()
        if config.event_head:
            model.event_logits(z[:, 1:5])
    assert served == 2 * sum(forward_flops(config, targets=6).values())
    assert 3 * counter.get_total_flops() == 2 * train_flops(config, targets=6)


def test_flops_count_active_experts_only():
    one, all_of_them = onerec_0_935b(**GIVEN), SIZES["0.935b"](**GIVEN)
    wider = dataclasses.replace(all_of_them, experts=48)
    router = 2 * 1024 * 24 * 3 * 4  # FLOPs of the larger router's rows: 3 tokens, 4 layers
    assert sum(forward_flops(wider).values()) - sum(forward_flops(one).values()) == router
    assert sum(forward_flops(one).values()) == pytest.approx(74.3e9, rel=0.01)  # by hand, docs/decisions/model.md
    assert train_flops(one) == 3 * sum(forward_flops(one).values())
