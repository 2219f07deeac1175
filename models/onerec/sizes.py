"""Named configurations: the four published sizes (TR Table 1), small ones, and what turns one into V1 or V2.

    from models.onerec.sizes import SIZES, lazy, onerec_0_935b, session
    session(onerec_0_935b(items=10_000_000, static_features=26), items=5)

The published sizes carry no item-level head: that is ours, and a softmax over a catalogue of millions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from models.onerec.config import OneRecConfig, onerec_laptop


def onerec_tiny(*, codebook_size: int, items: int, static_features: int) -> OneRecConfig:
    """The published structure as small as it gets, for tests and a look at the code."""
    return OneRecConfig(
        codebook_size=codebook_size,
        items=items,
        static_features=static_features,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        heads=2,
        ffn_dim=64,
        experts=4,
        expert_dim=32,
        positive_len=32,
        lifelong_len=32,
        lifelong_queries=4,
        author_buckets=1024,
    )


def _published(codebook_size: int, items: int, static_features: int, **sizes: Any) -> OneRecConfig:
    """TR section 2.2: lengths 20, 256, 2000 -> 128 queries; widths 64 a static code, 512 an author, 128 the rest."""
    return OneRecConfig(
        codebook_size=codebook_size,
        items=items,
        static_features=static_features,
        item_head=False,
        positive_len=256,
        lifelong_len=2000,
        lifelong_queries=128,
        static_dim=64,
        author_dim=512,
        feature_dim=128,
        balance_rate=0.001,  # DeepSeek-V3's, for long trainings; small ones are measured (docs/decisions/model.md)
        **sizes,
    )


def onerec_0_015b(*, items: int, static_features: int, codebook_size: int = 8192) -> OneRecConfig:
    """0.015B dense: 2 + 2 layers, d 128."""
    return _published(
        codebook_size,
        items,
        static_features,
        d_model=128,
        heads=4,
        ffn_dim=256,
        encoder_layers=2,
        decoder_layers=2,
        decoder_dense_layers=2,
    )


def onerec_0_121b(*, items: int, static_features: int, codebook_size: int = 8192) -> OneRecConfig:
    """0.121B dense: 4 + 4 layers, d 1024."""
    return _published(
        codebook_size,
        items,
        static_features,
        d_model=1024,
        heads=8,
        ffn_dim=2048,
        encoder_layers=4,
        decoder_layers=4,
        decoder_dense_layers=4,
    )


def onerec_0_935b(*, items: int, static_features: int, codebook_size: int = 8192) -> OneRecConfig:
    """0.935B MoE: the 0.121B model with 24 experts (2 active) in every decoder layer.

    Their width is 8/3 of d_model up to a multiple of 128, as the report's text says; its table prints 2048, which would
    make 0.71B parameters.
    """
    return dataclasses.replace(
        onerec_0_121b(items=items, static_features=static_features, codebook_size=codebook_size),
        decoder_dense_layers=0,
        experts=24,
        experts_per_token=2,
        expert_dim=2816,
    )


def onerec_2_633b(*, items: int, static_features: int, codebook_size: int = 8192) -> OneRecConfig:
    """2.633B MoE: 12 + 12 layers, 24 experts (4 active) in encoder and decoder.

    Which layers carry experts is not published. The last 8 of 12 in each half with the table's width of 2048 make
    2.64B; experts of 2816 in every layer would make over 5B.
    """
    return _published(
        codebook_size,
        items,
        static_features,
        d_model=1024,
        heads=8,
        ffn_dim=2048,
        encoder_layers=12,
        decoder_layers=12,
        encoder_moe_layers=8,
        decoder_dense_layers=4,
        experts=24,
        experts_per_token=4,
        expert_dim=2048,
    )


SIZES: dict[str, Callable[..., OneRecConfig]] = {
    "tiny": onerec_tiny,
    "laptop": onerec_laptop,
    "0.015b": onerec_0_015b,
    "0.121b": onerec_0_121b,
    "0.935b": onerec_0_935b,
    "2.633b": onerec_2_633b,
}


def session(config: OneRecConfig, items: int = 5) -> OneRecConfig:
    """The same model generating lists of `items` items (V1 section 3; 5 published)."""
    return dataclasses.replace(config, session_items=items)


def lazy(config: OneRecConfig) -> OneRecConfig:
    """The lazy decoder-only variant (V2): the encoder's layers become decoder layers, one key-value head is shared."""
    return dataclasses.replace(
        config,
        architecture="lazy_decoder",
        item_head=False,
        encoder_layers=0,
        encoder_moe_layers=0,
        decoder_layers=config.encoder_layers + config.decoder_layers,
    )
