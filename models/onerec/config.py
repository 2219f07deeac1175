"""Sizes of a OneRec model: a frozen dataclass and the named functions that build one.

from models.onerec.config import onerec_laptop
onerec_laptop(codebook_size=64, items=7583, static_features=26)
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

WIDTH_STEP = 8  # 16 bytes of bfloat16: the alignment of rows that grouped matrix products want


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRecConfig:
    """Everything that fixes the shapes of the model. Lengths are in events, widths in features.

    `items` is the number of items the item-level head was built for; later days may add items behind them
    (`models.training.checkpoint.grow_items`).
    """

    codebook_size: int
    items: int
    static_features: int
    levels: int = 3
    d_model: int = 96
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    ffn_dim: int = 192
    experts: int = 8
    experts_per_token: int = 2
    expert_dim: int = 128
    balance_rate: float = 0.001  # gamma of loss-free balancing (DeepSeek-V3's value; OneRec publishes none)
    short_len: int = 20
    positive_len: int = 64
    lifelong_len: int = 64
    lifelong_queries: int = 8
    lifelong_blocks: int = 2
    static_dim: int = 16
    author_dim: int = 32
    feature_dim: int = 16
    author_buckets: int = 8192
    tag_buckets: int = 512
    static_buckets: int = 8192
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{field.name} is {value}; every size and length must be at least 1")
        for name, width in (("d_model", self.d_model), ("expert_dim", self.expert_dim)):
            if width % WIDTH_STEP:
                raise ValueError(
                    f"{name} {width} is not a multiple of {WIDTH_STEP}, which the experts' grouped matrix product asks "
                    f"for; choose {width + -width % WIDTH_STEP}"
                )
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of heads {self.heads}; choose heads that divide it"
            )
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} must lie in 1..experts ({self.experts})")
        if self.levels != 3:
            raise ValueError(f"levels is {self.levels}: tables and serving hold three codes an item")

    @property
    def positions(self) -> int:
        """Encoder positions: static + short + positive + lifelong queries (405 at the published sizes)."""
        return 1 + self.short_len + self.positive_len + self.lifelong_queries

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> OneRecConfig:
        """Read a configuration back; unknown or missing fields are an error that names them."""
        return cls(**read_fields(path, cls))


def read_fields(path: Path, of: type) -> dict[str, Any]:
    """The fields of dataclass `of` in a JSON file. ValueError naming those that are unknown or missing."""
    raw = json.loads(path.read_text())
    known = {f.name for f in dataclasses.fields(of)}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"{path}: unknown fields {unknown}; the file was written by another version of the model")
    if missing := sorted(known - set(raw)):
        raise ValueError(f"{path}: fields {missing} are missing; the file was written by another version of the model")
    return raw


def onerec_laptop(*, codebook_size: int, items: int, static_features: int) -> OneRecConfig:
    """The published structure at a size that two CPU cores train in minutes (the default of `make daily`)."""
    return OneRecConfig(codebook_size=codebook_size, items=items, static_features=static_features)
