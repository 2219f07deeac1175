"""From a user's raw feature arrays to the tensors of the model `onerec`, and the check of such tensors.

    encoder = Encoder(OneRecConfig.load(release / "model" / "config.json"), tokenizer.catalogue)
    tensors = encoder.encode(features, now_s)             int32 arrays of one user
    encoder.check(tensors)                                ValueError for what would break the model

Tensors of `onerec`, B users: static [B, S]; short, positive, lifelong [B, length, 7], the newest event last and zeros
before the first; lengths [B, 3], the number of events of each. All int32: the request is most of the cost of a small
answer, and every value is an index into a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.onerec.config import OneRecConfig
from models.onerec.features import (
    DURATION_BUCKETS,
    GAP_BUCKETS,
    LABEL_STATES,
    NUM_FIELDS,
    PLAY_BUCKETS,
    Catalogue,
    encode_events,
)
from models.onerec.pathways import HISTORIES
from models.onerec.program import input_shapes

if TYPE_CHECKING:  # Feast is no business of the model's own process
    from feature_repo.online import UserFeatures


class Encoder:
    """The context of one release: its catalogue and the lengths its model was trained with."""

    def __init__(self, config: OneRecConfig, catalogue: Catalogue) -> None:
        self.config, self.catalogue = config, catalogue
        self.lengths = {"short": config.short_len, "positive": config.positive_len, "lifelong": config.lifelong_len}
        tables = (len(catalogue) + 1, config.author_buckets, config.tag_buckets)
        self.tables = np.array([*tables, GAP_BUCKETS, PLAY_BUCKETS, DURATION_BUCKETS, LABEL_STATES])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input of one user: those of the exported program, whose `beam` comes with the request."""
        return {name: tuple(shape) for name, shape in input_shapes(self.config).items() if name != "beam"}

    def encode(self, features: UserFeatures, now_s: int) -> dict[str, np.ndarray]:
        """The arrays of one user, without a batch dimension. A user without static codes gets the unknown code, 0.

        Raises ValueError when the static codes are not those of the release.
        """
        wanted = self.config.static_features
        static = features.static if len(features.static) else np.zeros(wanted, np.int64)
        if static.shape != (wanted,) or (static < 0).any() or (static >= self.config.static_buckets).any():
            raise ValueError(
                f"{len(static)} static codes up to {static.max(initial=0)}; the release wants {wanted} in"
                f" 0..{self.config.static_buckets - 1}: use its feature service"
            )
        tensors, lengths = {"static": static.astype(np.int32)}, []
        for name in HISTORIES:
            length = self.lengths[name]
            raw = getattr(features, name)[-length:] if length else np.zeros((0, NUM_FIELDS), np.int64)
            padded = np.zeros((length, NUM_FIELDS), np.int32)
            if len(raw):
                clock = np.full(len(raw), now_s, np.int64)
                c = self.config
                padded[-len(raw) :] = encode_events(raw, clock, self.catalogue, c.author_buckets, c.tag_buckets)
            tensors[name] = padded
            lengths.append(len(raw))
        return tensors | {"lengths": np.array(lengths, np.int32)}

    def check(self, tensors: dict[str, np.ndarray]) -> None:
        """Raises ValueError naming the first value that is outside its table; tensors have a batch dimension."""
        static = tensors["static"]
        if (static < 0).any() or (static >= self.config.static_buckets).any():
            raise ValueError(f"static codes must lie in 0..{self.config.static_buckets - 1}")
        for i, name in enumerate(HISTORIES):
            events, valid = tensors[name], tensors["lengths"][:, i]
            if (valid < 0).any() or (valid > events.shape[1]).any():
                raise ValueError(f"lengths of {name} must lie in 0..{events.shape[1]}")
            if (events < 0).any() or (events >= self.tables).any():
                field = int(np.argmax((events < 0).any((0, 1)) | (events >= self.tables).any((0, 1))))
                raise ValueError(f"field {field} of {name} must lie in 0..{self.tables[field] - 1}")
