"""The four user pathways: event embeddings, projections and the lifelong QFormer (TR section 2.2).

The events of all pathways are embedded as one run of packed rows: padding is never computed, and each table is looked
up once. How an item of a history is represented is the caller's: `item_vector`.

Legend: B users, L events, E packed events, F features, D model width, C context width, Q lifelong queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.embedding import Table
from models.onerec.features import DURATION_BUCKETS, GAP_BUCKETS, LABEL_STATES, PLAY_BUCKETS
from models.onerec.layers import FeedForward, QFormerBlock
from models.onerec.rows import Layout

HISTORIES = ("short", "positive", "lifelong")


class EventEmbedding(nn.Module):
    """One event's seven integers to its concatenated feature embeddings, F wide."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        f = config.feature_dim
        self.author = Table(config.author_buckets, config.author_dim)
        self.tag = Table(config.tag_buckets, f)
        self.gap = Table(GAP_BUCKETS, f)
        self.play = Table(PLAY_BUCKETS, f)
        self.duration = Table(DURATION_BUCKETS, f)
        self.label = Table(LABEL_STATES, f)
        self.width = config.d_model + config.author_dim + 5 * f

    def forward(self, events_E7: Tensor, items_ED: Tensor) -> Tensor:
        _, author, tag, gap, play, duration, label = events_E7.unbind(-1)
        parts = [items_ED, self.author(author), self.tag(tag), self.gap(gap), self.play(play)]
        return torch.cat([*parts, self.duration(duration), self.label(label)], dim=-1)


class Pathways(nn.Module):
    """Static, short-term, positive-feedback and lifelong inputs to one packed sequence z and its layout.

    Histories are right-aligned: the newest event always has the same position, and padding is masked out of attention.
    Each goes through Dense, LeakyReLU, Dense; the lazy decoder's through one Dense, and it has no QFormer.
    """

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        d, c, drop = config.d_model, config.context_dim, config.dropout
        self.config = config

        def projection(width: int) -> nn.Module:
            return nn.Linear(width, c) if config.lazy else FeedForward(width, d, d, drop)

        self.static = Table(config.static_buckets, config.static_dim)
        self.static_proj = projection(config.static_features * config.static_dim)
        self.event = EventEmbedding(config)
        self.short_proj, self.positive_proj, self.lifelong_proj = (projection(self.event.width) for _ in HISTORIES)
        if not config.lazy:
            self.query_QD = nn.Parameter(torch.randn(config.lifelong_queries, d) * 0.02)
            self.qformer = nn.ModuleList(
                QFormerBlock(d, config.heads, config.ffn_dim, drop) for _ in range(config.lifelong_blocks)
            )
        self.position_TC = nn.Parameter(torch.randn(config.positions, c) * 0.02)
        if not config.lazy:
            self.no_life_D = nn.Parameter(torch.zeros(d))

    def forward(self, batch: dict[str, Tensor], item_vector: Callable[[Tensor], Tensor]) -> tuple[Tensor, Layout]:
        """batch: static [B, S]; short, positive, lifelong [B, L, 7], `*_mask` [B, L]. item_vector: index -> [.., D].

        A batch without any mask has full histories only; then nothing is masked. Returns packed rows [N, C] and the
        layout of the grid [B, T] that they stand in.
        """
        c, B = self.config, len(batch["static"])
        layouts = [Layout.of(B, batch[name].shape[1], batch.get(f"{name}_mask")) for name in HISTORIES]
        packed = [layout.pack(batch[name]) for name, layout in zip(HISTORIES, layouts)]
        events_E7 = torch.cat(packed)
        rows_EF = self.event(events_E7, item_vector(events_E7[:, 0])).split([len(p) for p in packed])
        projections = (self.short_proj, self.positive_proj, self.lifelong_proj)
        short, positive, lifelong = (
            layout.pad(project(rows)) for project, rows, layout in zip(projections, rows_EF, layouts)
        )
        full = layouts[0].mask_BT is None
        masks = [batch["static"].new_ones(B, 1, dtype=torch.bool), *(layout.mask_BT for layout in layouts)]
        if not c.lazy:
            lifelong = self._lifelong(lifelong, layouts[2].mask_BT)
            masks[3] = batch["static"].new_ones(1, 1, dtype=torch.bool).expand(B, c.lifelong_queries)
        static = self.static_proj(self.static(batch["static"]).flatten(1))[:, None]
        lengths = [1, c.short_len, c.positive_len, c.positions - 1 - c.short_len - c.positive_len]
        parts = [
            part + position[length - part.shape[1] :]
            for part, position, length in zip(
                (static, short, positive, lifelong), self.position_TC.split(lengths), lengths
            )
        ]
        grid_BTC = torch.cat(parts, 1)
        layout = Layout.of(B, grid_BTC.shape[1], None if full else torch.cat([cast(Tensor, m) for m in masks], 1))
        return layout.pack(grid_BTC), layout

    def _lifelong(self, events_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        """[B, L, D] -> [B, Q, D]. A learned slot always attends, so that an empty history is defined."""
        B, L, D = events_BLD.shape
        grid = torch.cat([self.no_life_D.to(events_BLD.dtype).expand(B, 1, D), events_BLD], 1)
        mask = None if mask_BL is None else torch.cat([mask_BL.new_ones(B, 1), mask_BL], 1)
        to, of = Layout.of(B, L + 1, mask), Layout.of(B, self.config.lifelong_queries, None)
        v, h = to.pack(grid), self.query_QD.repeat(B, 1)
        for block in self.qformer:
            h = block(h, v, of, to)
        return of.pad(h)
