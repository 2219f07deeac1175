"""What fixes the shapes of a OneRec model: a frozen dataclass. More named sizes: models/onerec/sizes.py.

from models.onerec.config import onerec_laptop
onerec_laptop(codebook_size=64, items=7583, static_features=26)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

WIDTH_STEP = 8  # 16 bytes of bfloat16: the alignment of rows that grouped matrix products want
ARCHITECTURES = ("encoder_decoder", "lazy_decoder")
AFFINITIES = ("sigmoid", "softmax")
# Fields that releases made before them lack, and what those models are.
ADDED = {"history_bag": False, "event_head": False}
HISTORIES = ("sid", "hashed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRecConfig:
    """Everything that fixes the shapes of the model. Lengths are in events, widths in features.

    Three models are configurations of the same code:

    * point-wise (OneRec TR, the default): one item a sample;
    * session-wise (V1): `session_items` = m > 1, a list of m items with BOS before each;
    * lazy decoder (V2): `architecture="lazy_decoder"`, no encoder, the context is the keys and values of all layers.

    `items` is the number of items the item-level head was built for; later days may add items behind them
    (`models.training.checkpoint.grow_items`).
    """

    codebook_size: int
    items: int
    static_features: int
    levels: int = 3
    architecture: str = "encoder_decoder"
    session_items: int = 1
    item_head: bool = True  # item-level softmax on the encoder; its cost grows with the catalogue
    history: str = "sid"  # a history's item: its code embeddings, shared with the output, or a hashed row of its own
    history_bag: bool = False  # the context's first vector also holds a sum of rows, one an item of the histories
    event_head: bool = False  # short events see older short ones alone, and each predicts the next by the item head
    item_buckets: int = 65_536  # rows of the hashed table
    d_model: int = 96
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    kv_heads: int = 1  # of the lazy decoder's shared context: query heads share them in groups
    ffn_dim: int = 192
    encoder_moe_layers: int = 0  # the last n encoder layers carry experts
    decoder_dense_layers: int = 0  # the first n decoder layers carry none
    experts: int = 8
    experts_per_token: int = 2
    expert_dim: int = 128
    shared_expert_dim: int = 0  # width of the expert that sees every token; 0: none
    affinity: str = "sigmoid"  # of DeepSeek-V3, normalised over the chosen; or V1's softmax, as it is
    balance_rate: float = 0.01  # gamma of loss-free balancing: docs/decisions/model.md (OneRec publishes none)
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
        may_be_zero = ("encoder_layers", "encoder_moe_layers", "decoder_dense_layers", "shared_expert_dim")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < (0 if field.name in may_be_zero else 1):
                least = "must not be negative" if field.name in may_be_zero else "must be at least 1"
                raise ValueError(f"{field.name} is {value}; every size and length {least}")
        if self.item_buckets < 2:
            raise ValueError("item_buckets is 1; a hashed table needs a row for unknown items and one for the others")
        for name, among in (("architecture", ARCHITECTURES), ("affinity", AFFINITIES), ("history", HISTORIES)):
            if (chosen := getattr(self, name)) not in among:
                raise ValueError(f"{name} is {chosen!r}; choose one of {', '.join(among)}")
        if self.history_bag and not self.item_head:
            raise ValueError("history_bag holds a row an item for the item head: set item_head=True, or leave it out")
        if self.event_head and not self.item_head:  # which only an encoder carries
            raise ValueError("event_head predicts by the item head: set item_head=True, or leave it out")
        for name in ("d_model", "expert_dim", "shared_expert_dim"):
            width = getattr(self, name)
            if width % WIDTH_STEP:
                raise ValueError(
                    f"{name} {width} is not a multiple of {WIDTH_STEP}, which the experts' grouped matrix product asks "
                    f"for; choose {width + -width % WIDTH_STEP}"
                )
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of heads {self.heads}; choose heads that divide it"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; choose a divisor")
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} must lie in 1..experts ({self.experts})")
        for part, layers, of in (
            ("encoder_moe_layers", self.encoder_moe_layers, self.encoder_layers),
            ("decoder_dense_layers", self.decoder_dense_layers, self.decoder_layers),
        ):
            if layers > of:
                raise ValueError(f"{part} is {layers}, but there are {of} such layers; choose 0..{of}")
        if self.levels != 3:
            raise ValueError(f"levels is {self.levels}: tables and serving hold three codes an item")
        if self.lazy and (self.encoder_layers or self.item_head):
            raise ValueError(
                "a lazy decoder has no encoder: set encoder_layers=0 and item_head=False (models.onerec.sizes.lazy)"
            )
        if not self.lazy and not self.encoder_layers:
            raise ValueError('encoder_layers is 0; choose at least 1, or architecture="lazy_decoder"')

    @property
    def lazy(self) -> bool:
        return self.architecture == "lazy_decoder"

    @property
    def positions(self) -> int:
        """Context positions: static + short + positive + lifelong queries (405 at the published sizes).

        The lazy decoder has no queries: the lifelong events themselves are context.
        """
        lifelong = self.lifelong_len if self.lazy else self.lifelong_queries
        return 1 + self.short_len + self.positive_len + lifelong

    @property
    def context_dim(self) -> int:
        """Width of a context vector: that of the model, or of the lazy decoder's keys."""
        return self.kv_heads * self.d_model // self.heads if self.lazy else self.d_model

    @property
    def decoder_tokens(self) -> int:
        """Tokens of a list: BOS and the codes of each item; the last item's last code predicts nothing."""
        return self.session_items * (self.levels + 1) - 1

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> OneRecConfig:
        """Read a configuration back; unknown or missing fields are an error that names them."""
        return cls(**read_fields(path, cls, ADDED))


def read_fields(path: Path, of: type, added: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The fields of dataclass `of` in a JSON file. ValueError naming those that are unknown or missing.

    added: fields that older files lack, and what they stand for there.
    """
    raw = {**added, **json.loads(path.read_text())}
    known = {f.name for f in dataclasses.fields(of)}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"{path}: unknown fields {unknown}; the file was written by another version of the model")
    if missing := sorted(known - set(raw)):
        raise ValueError(f"{path}: fields {missing} are missing; the file was written by another version of the model")
    return raw


def onerec_laptop(*, codebook_size: int, items: int, static_features: int) -> OneRecConfig:
    """The published structure at a size that two CPU cores train in minutes (the default of `make daily`)."""
    return OneRecConfig(codebook_size=codebook_size, items=items, static_features=static_features)
