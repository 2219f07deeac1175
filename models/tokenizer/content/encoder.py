"""The content encoder: one method that turns items into tokens, whichever network is behind it.

    encoder = content_encoder("text")                      # small text encoder, weights inside its package
    encoder = content_encoder("openbmb/MiniCPM-V-4.6")     # a vision-language model, hub name or local path
    tokens = encode_all(encoder, items)                    # ragged, float16, frozen: compute once an item

Encoders are frozen: what is learned sits behind them (qformer.py), so that a day encodes only its new items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from models.tokenizer.content.items import ItemContent

if TYPE_CHECKING:
    from models.tokenizer.content.pictures import OpenUri  # PyAV and Pillow are not needed where no picture is read


class ContentEncoder(Protocol):
    """`dim` is the width of its tokens; `batch_size` how many items it likes at a time."""

    dim: int
    batch_size: int

    def encode(self, items: list[ItemContent]) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, dim] and mask [B, N]; an item without anything it can read has no True in its row."""


def content_encoder(
    name: str, *, dim: int = 512, device: str = "cpu", open_uri: OpenUri | None = None
) -> ContentEncoder:
    """ "text", or the path or hub name of a vision-language model whose hidden states are brought to at most `dim`."""
    if name == "text":
        from models.tokenizer.content.text import TextEncoder

        return TextEncoder(device=device)
    from models.tokenizer.content.vision_language import VisionLanguageEncoder

    return VisionLanguageEncoder(name, dim=dim, device=device, open_uri=open_uri)


@dataclasses.dataclass
class Tokens:
    """Tokens of items end to end: item i has values[offsets[i]:offsets[i + 1]], [n, dim] float16."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def padded(self, rows: np.ndarray, longest: int | None = None) -> tuple[Tensor, Tensor]:
        """[B, N, dim] float16 and mask [B, N] of some items; N fits the batch, at most `longest` (the first count)."""
        length = self.offsets[rows + 1] - self.offsets[rows]
        if longest is not None:
            length = np.minimum(length, longest)
        place = np.arange(int(length.max(initial=0)))
        mask = place[None] < length[:, None]
        at = np.where(mask, self.offsets[rows][:, None] + place[None], 0)
        values = self.values[at] if len(self.values) else np.zeros((*at.shape, self.values.shape[1]), np.float16)
        return torch.from_numpy(np.where(mask[..., None], values, np.float16(0))), torch.from_numpy(mask)


@torch.inference_mode()
def encode_all(
    encoder: ContentEncoder, items: list[ItemContent], progress: Callable[[str], None] = lambda line: None
) -> Tokens:
    """Every item's tokens, in batches of similar text length (less padding), said every 2,000 items."""
    length = np.array([len(i.caption) + len(i.asr) + len(i.ocr) for i in items], np.int64)
    order = np.argsort(length, kind="stable")
    parts: list[np.ndarray] = [np.empty((0, encoder.dim), np.float16)] * len(items)
    done, said = 0, 0
    for begin in range(0, len(items), encoder.batch_size):
        rows = order[begin : begin + encoder.batch_size]
        values, mask = (x.cpu() for x in encoder.encode([items[i] for i in rows]))
        for row, v, m in zip(rows.tolist(), values, mask):
            parts[row] = v[m].to(torch.float16).numpy()
        done += len(rows)
        if done - said >= 2000:
            progress(f"content of {done:,} of {len(items):,} items encoded")
            said = done
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
    return Tokens(np.concatenate(parts) if parts else np.empty((0, encoder.dim), np.float16), offsets)
