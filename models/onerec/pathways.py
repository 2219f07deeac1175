"""The four user pathways: event embeddings, projections and the lifelong QFormer (TR section 2.2).

Items are represented by their semantic IDs; the code embeddings are shared with the output side (TR section 4.2.2).

Legend: B users, L events, D model width, Q lifelong queries.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.features import DURATION_BUCKETS, GAP_BUCKETS, LABEL_STATES, PLAY_BUCKETS
from models.onerec.layers import FeedForward, QFormerBlock


class EventEmbedding(nn.Module):
    """One event's seven integers to D: concatenated feature embeddings through Dense, LeakyReLU, Dense."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        f = config.feature_dim
        self.author = nn.Embedding(config.author_buckets, config.author_dim)
        self.tag = nn.Embedding(config.tag_buckets, f)
        self.gap = nn.Embedding(GAP_BUCKETS, f)
        self.play = nn.Embedding(PLAY_BUCKETS, f)
        self.duration = nn.Embedding(DURATION_BUCKETS, f)
        self.label = nn.Embedding(LABEL_STATES, f)
        self.width = config.d_model + config.author_dim + 5 * f

    def forward(self, events_BL7: Tensor, items_BLD: Tensor) -> Tensor:
        _, author, tag, gap, play, duration, label = events_BL7.unbind(-1)
        parts = [items_BLD, self.author(author), self.tag(tag), self.gap(gap), self.play(play)]
        return torch.cat([*parts, self.duration(duration), self.label(label)], dim=-1)


class Pathways(nn.Module):
    """Static, short-term, positive-feedback and lifelong inputs to one sequence z [B, T, D] with its mask [B, T].

    Histories are right-aligned: the newest event always has the same position, and padding is masked out of attention.
    """

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        d, drop = config.d_model, config.dropout
        self.config = config
        self.static = nn.Embedding(config.static_buckets, config.static_dim)
        self.static_proj = FeedForward(config.static_features * config.static_dim, d, d, drop)
        self.event = EventEmbedding(config)
        self.short_proj = FeedForward(self.event.width, d, d, drop)
        self.positive_proj = FeedForward(self.event.width, d, d, drop)
        self.lifelong_proj = FeedForward(self.event.width, d, d, drop)
        self.query_QD = nn.Parameter(torch.randn(config.lifelong_queries, d) * 0.02)
        self.qformer = nn.ModuleList(
            QFormerBlock(d, config.heads, config.ffn_dim, drop) for _ in range(config.lifelong_blocks)
        )
        self.position_TD = nn.Parameter(torch.randn(config.positions, d) * 0.02)
        self.no_life_D = nn.Parameter(torch.zeros(d))

    def forward(self, batch: dict[str, Tensor], item_vector) -> tuple[Tensor, Tensor]:
        """batch: static [B, S]; short, positive, lifelong [B, L, 7], `*_mask` [B, L]. item_vector: index -> [.., D]."""
        c = self.config
        pos_static, pos_short, pos_positive, pos_life = self.position_TD.split(
            [1, c.short_len, c.positive_len, c.lifelong_queries]
        )
        parts = [self.static_proj(self.static(batch["static"]).flatten(1))[:, None] + pos_static]
        masks = [torch.ones_like(batch["static"][:, :1], dtype=torch.bool)]
        for name, proj, position in (
            ("short", self.short_proj, pos_short),
            ("positive", self.positive_proj, pos_positive),
        ):
            events = batch[name]
            if events.shape[1]:
                h = proj(self.event(events, item_vector(events[..., 0])))
                parts.append(h + position[-events.shape[1] :])
                masks.append(batch[f"{name}_mask"])
        parts.append(self._lifelong(batch, item_vector) + pos_life)
        masks.append(torch.ones_like(parts[-1][..., 0], dtype=torch.bool))
        return torch.cat(parts, 1), torch.cat(masks, 1)

    def _lifelong(self, batch: dict[str, Tensor], item_vector) -> Tensor:
        """[B, L, 7] -> [B, Q, D]. A learned slot always attends, so that an empty history is defined."""
        events, mask_BL = batch["lifelong"], batch["lifelong_mask"]
        B = len(events)
        v = self.lifelong_proj(self.event(events, item_vector(events[..., 0])))
        v = torch.cat([self.no_life_D.expand(B, 1, -1), v], 1)
        mask = torch.cat([torch.ones_like(mask_BL[:, :1]) if mask_BL.shape[1] else mask_BL.new_ones(B, 1), mask_BL], 1)
        h = self.query_QD.expand(B, -1, -1)
        for layer in self.qformer:
            block = cast(QFormerBlock, layer)
            h = block(h, block.attn.project_kv(v), mask[:, None, None])
        return h
