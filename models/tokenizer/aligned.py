"""The aligned representation: content tokens, pairs and alignment put together; frozen after `fit`.

    fitted, vectors = AlignedRepresentation.fit(AlignedConfig(), items, users, liked, seed=0)
    fitted.vectors(new_items)   # the same day, nothing is trained again

`tensors` holds all there is to keep, the configuration among it (JSON in a tensor of bytes, so that it travels with the
weights in one safetensors file). The content encoder is named, not kept: it is frozen and large.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from models.tokenizer.alignment import AlignmentConfig, ItemInputs, align, aligned_vectors
from models.tokenizer.content.encoder import Tokens, content_encoder, encode_all
from models.tokenizer.content.items import ItemContent, read_items
from models.tokenizer.content.pictures import OpenUri
from models.tokenizer.pairs import PairConfig, training_pairs
from models.tokenizer.qformer import ItemEncoder, ItemEncoderConfig

ABOUT = "aligned.about"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedConfig:
    """`content`: "text", the path or hub name of a vision-language model, or "" for tags and authors alone."""

    content: str = "text"
    pairs: PairConfig = dataclasses.field(default_factory=PairConfig)
    alignment: AlignmentConfig = dataclasses.field(default_factory=AlignmentConfig)


def aligned_small() -> AlignedConfig:
    """For a processor: 4 x 64 instead of 4 x 512, two layers."""
    encoder = ItemEncoderConfig(dim=64, layers=2, heads=4)
    return AlignedConfig(alignment=AlignmentConfig(encoder=encoder, batch=256, steps=600))


class AlignedRepresentation:
    """An encoder frozen after `fit`; `tensors` restores it."""

    def __init__(self, tensors: dict[str, np.ndarray], *, device: str = "cpu", open_uri: OpenUri | None = None) -> None:
        self.tensors, self.device, self.open_uri = tensors, device, open_uri
        self.about = json.loads(tensors[ABOUT].tobytes())
        self.encoder = ItemEncoder(ItemEncoderConfig(**self.about["encoder"]))
        weights = {k.removeprefix("aligned."): torch.from_numpy(v) for k, v in tensors.items() if k != ABOUT}
        self.encoder.load_state_dict(weights)
        self.encoder.to(device).eval().requires_grad_(False)

    @classmethod
    def fit(
        cls,
        config: AlignedConfig,
        items: pa.Table,
        users: np.ndarray,
        liked: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        device: str = "cpu",
        open_uri: OpenUri | None = None,
        progress: Callable[[str], None] = print,
    ) -> tuple[AlignedRepresentation, np.ndarray]:
        """Align on positives (users, rows of items, in time order within a user); returns it and vectors [N, Q * D]."""
        content = read_items(items)
        name = config.content if any(i.has_text or i.has_pictures for i in content) else ""
        tokens = _tokens(name, content, config.alignment.encoder.dim, device, open_uri, progress)
        encoder = dataclasses.replace(config.alignment.encoder, content_dim=tokens.values.shape[1] if tokens else 0)
        settings = dataclasses.replace(config.alignment, encoder=encoder)
        inputs = ItemInputs.to_align(content, tokens, settings)
        pairs = training_pairs(users, liked, len(items), config.pairs, seed)
        progress(f"{len(pairs):,} item pairs of {len(items):,} items")
        trained = align(inputs, pairs, settings, seed=seed, folder=folder, device=device, progress=progress)
        about = {"content": name, "encoder": dataclasses.asdict(encoder), "longest": settings.longest}
        tensors = {f"aligned.{k}": v.cpu().numpy() for k, v in trained.state_dict().items()}
        tensors[ABOUT] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
        fitted = cls(tensors, device=device, open_uri=open_uri)
        return fitted, aligned_vectors(fitted.encoder, inputs, longest=settings.longest, device=device)

    def vectors(self, items: pa.Table, progress: Callable[[str], None] = lambda line: None) -> np.ndarray:
        """Vectors [N, Q * D] of any items, known or new, from the frozen encoder."""
        content, encoder = read_items(items), self.encoder.config
        tokens = _tokens(self.about["content"], content, encoder.dim, self.device, self.open_uri, progress)
        inputs = ItemInputs.of(content, tokens, encoder)
        return aligned_vectors(self.encoder, inputs, longest=self.about["longest"], device=self.device)


def _tokens(
    name: str,
    items: list[ItemContent],
    dim: int,
    device: str,
    open_uri: OpenUri | None,
    progress: Callable[[str], None],
) -> Tokens | None:
    if not name:
        return None
    return encode_all(content_encoder(name, dim=dim, device=device, open_uri=open_uri), items, progress)
