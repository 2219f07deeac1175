"""The four user pathways: event embeddings, projections and the lifelong QFormer (TR section 2.2).

The events of all pathways are embedded as one run of packed rows: padding is never computed, and each table is looked
up once. How an item of a history is represented is the caller's: `item_vector`.

Legend: B users, L events, E packed events, F features, D model width, C context width, Q lifelong queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.embedding import Table, event_kernels_run, lookups
from models.onerec.features import DURATION_BUCKETS, GAP_BUCKETS, LABEL_STATES, PLAY_BUCKETS
from models.onerec.layers import FeedForward, QFormerBlock
from models.onerec.rows import Layout

HISTORIES = ("short", "positive", "lifelong")
ItemVector = Callable[[Tensor], Tensor]  # catalogue indices [..] -> [.., D]


@dataclasses.dataclass(frozen=True)
class ItemLookups:
    """An item vector as a sum of table rows: catalogue indices [..] -> rows [.., n] of n tables of equal width."""

    tables: list[Table]
    rows: Callable[[Tensor], Tensor]


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

    def forward(self, events_E7: Tensor, item_vector: ItemVector, item_lookups: ItemLookups) -> Tensor:
        """[E, 7] integers of `features.encode_events` -> [E, F]; both item arguments give the same vector."""
        item, *rest = events_E7.unbind(-1)
        tables = [self.author, self.tag, self.gap, self.play, self.duration, self.label]
        if event_kernels_run([*item_lookups.tables, *tables]):
            columns = [0] * len(item_lookups.tables)
            for table in [item_lookups.tables[0], *tables[:-1]]:
                columns.append(columns[-1] + table.embedding_dim)
            rows_ET = torch.cat([item_lookups.rows(item), events_E7[:, 1:]], 1)
            return lookups(rows_ET, [*item_lookups.tables, *tables], columns)
        return torch.cat([item_vector(item), *(table(index) for table, index in zip(tables, rest))], dim=-1)


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

    def forward(
        self, batch: dict[str, Tensor], item_vector: ItemVector, item_lookups: ItemLookups, packs: bool = True
    ) -> tuple[Tensor, Layout]:
        """batch: static [B, S]; short, positive, lifelong [B, L, 7], `*_mask` [B, L].

        A batch without any mask has full histories only; then nothing is masked. Returns packed rows [N, C] and the
        layout of the grid [B, T] that they stand in; without `packs` all rows of the grid. With an event head the short
        events, behind the static position, are the layout's causal range.
        """
        c, B = self.config, batch["static"].shape[0]
        events_BL7 = [batch[name] for name in HISTORIES]
        masks_BL = [batch.get(f"{name}_mask") for name in HISTORIES]
        if not c.lazy:  # one event more, whose row becomes the slot that always attends
            events_BL7[2] = F.pad(events_BL7[2], (0, 0, 1, 0))
            masks_BL[2] = None if masks_BL[2] is None else F.pad(masks_BL[2], (1, 0), value=True)
        layouts = [Layout.of(B, e.shape[1], mask, packs) for e, mask in zip(events_BL7, masks_BL)]
        packed = [layout.pack(events) for layout, events in zip(layouts, events_BL7)]
        events_E7 = torch.cat(packed)
        rows_EF = self.event(events_E7, item_vector, item_lookups).split([p.shape[0] for p in packed])
        projections = (self.short_proj, self.positive_proj, self.lifelong_proj)
        short, positive, lifelong = (project(rows) for project, rows in zip(projections, rows_EF))
        if not c.lazy:
            layouts[2], lifelong = self._lifelong(layouts[2], lifelong)
        static = self.static_proj(self.static(batch["static"]).flatten(1))[:, None]
        parts = [static, *(layout.pad(rows) for layout, rows in zip(layouts, (short, positive, lifelong)))]
        lengths = [1, c.short_len, c.positive_len, c.positions - 1 - c.short_len - c.positive_len]
        placed = [
            part + position[length - part.shape[1] :]
            for part, position, length in zip(parts, self.position_TC.split(lengths), lengths)
        ]
        mask_BT = None
        if masks_BL[0] is not None:
            always = masks_BL[0].new_ones(B, 1)
            queries = always.expand(B, c.lifelong_queries)
            tail = [masks_BL[0], masks_BL[1], masks_BL[2] if c.lazy else queries]
            mask_BT = torch.cat([always, *(cast(Tensor, mask) for mask in tail)], 1)
        short_len = parts[1].shape[1]
        causal = (1, 1 + short_len) if c.event_head and short_len else None
        layout = Layout.of(B, sum(part.shape[1] for part in parts), mask_BT, packs, causal)
        return layout.pack(torch.cat(placed, 1)), layout

    def _lifelong(self, to: Layout, rows_SD: Tensor) -> tuple[Layout, Tensor]:
        """Queries that have read the packed events [S, D]: their layout and rows [B * Q, D].

        Each user's first row is not an event but a learned slot, so that an empty history is defined.
        """
        of = Layout.of(to.batch, self.config.lifelong_queries, None)
        slot_D: Tensor | None = self.no_life_D.to(rows_SD.dtype)
        padded = to.mask_BT is not None and to.index_N is None
        if padded or not cast(QFormerBlock, self.qformer[0]).attn.reads(rows_SD, of.length):
            first_B = to.starts(rows_SD.device)[:-1].long()
            rows_SD = rows_SD.index_copy(0, first_B, cast(Tensor, slot_D).expand(to.batch, -1))
            slot_D = None
        h = self.query_QD.repeat(to.batch, 1)
        for block in self.qformer:
            h = block(h, rows_SD, of, to, slot_D)
        return of, h
