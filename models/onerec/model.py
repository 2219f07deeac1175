"""OneRec: four pathways, bidirectional encoder, MoE decoder that spells an item's semantic ID (TR sections 2.2, 2.3).

The model knows nothing of training, files or serving. Its configuration makes it the point-wise model, V1's list
generator or V2's lazy decoder (models/onerec/config.py). Beside the published next-token heads it may carry an
item-level softmax on the encoder (docs/decisions/model.md): it trains the encoder on whole items and joins the beam's
score.

Legend: B users, M targets a user, L=3 levels, K codebook size, T context tokens, P decoder tokens, D model width,
C context width, N items, S lists, m items a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.embedding import HashedItems, Table, lookup, lookup_sum
from models.onerec.history_bag import HistoryBag
from models.onerec.kernels import UsesKernels
from models.onerec.layers import Cache, DecoderLayer, EncoderLayer
from models.onerec.pathways import ItemLookups, Pathways
from models.onerec.rows import Layout

ContextKV = tuple[Tensor, Tensor] | Tensor  # as models.onerec.layers.DecoderLayer takes them


class OneRec(UsesKernels, nn.Module):
    """The model. `sid_NL` (a buffer) maps catalogue indices to codes; row N, the unknown item, holds code K."""

    sid_NL: Tensor

    def __init__(self, config: OneRecConfig, sid_NL: Tensor) -> None:
        super().__init__()
        if sid_NL.shape != (config.items, config.levels):
            raise ValueError(
                f"SID table is {tuple(sid_NL.shape)}, the configuration wants {(config.items, config.levels)}"
            )
        d, K = config.d_model, config.codebook_size
        self.config = config
        unknown = torch.full((1, config.levels), K)
        self.register_buffer("sid_NL", torch.cat([sid_NL.long(), unknown]))
        self.code = nn.ModuleList(Table(K + 1, d) for _ in range(config.levels))
        if config.item_head:
            self.item_residual = Table(config.items + 1, d)
        for level in range(config.levels):
            nn.init.normal_(self._code(level).weight, std=d**-0.5)
        if config.item_head:
            nn.init.zeros_(self.item_residual.weight)
        if config.history_bag:
            self.bag = HistoryBag(config)
        self.hashed_items = HashedItems(config.item_buckets, d) if config.history == "hashed" else None
        self.pathways = Pathways(config)
        experts_from = config.encoder_layers - config.encoder_moe_layers
        self.encoder = nn.ModuleList(EncoderLayer(config, moe=i >= experts_from) for i in range(config.encoder_layers))
        self.norm_context = nn.RMSNorm(config.context_dim, eps=1e-6)
        self.bos_D = nn.Parameter(torch.randn(d) * 0.02)
        self.place_PD = nn.Parameter(torch.randn(config.decoder_tokens, d) * 0.02)
        self.decoder = nn.ModuleList(
            DecoderLayer(config, moe=i >= config.decoder_dense_layers) for i in range(config.decoder_layers)
        )
        self.norm_out = nn.RMSNorm(d, eps=1e-6)
        self.head = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(config.levels))
        self.code_bias_LK = nn.Parameter(torch.zeros(config.levels, K))
        if config.item_head:
            self.item_query = nn.Linear(d, d)
            self.item_bias_N = nn.Parameter(torch.zeros(config.items))
        if config.event_head:
            self.event_query = nn.Linear(d, d)

    def _code(self, level: int) -> nn.Embedding:
        return cast(nn.Embedding, self.code[level])

    def item_vector(self, index: Tensor) -> Tensor:
        """Catalogue index [...] -> [..., D]: the sum of its three code embeddings.

        Far more lookups than there are items go through one table of all items: to make it, and its gradient, costs as
        much as two and a half lookups an item. An exported program has no such branch.
        """
        if not torch.compiler.is_exporting() and index.numel() > 2.5 * len(self.sid_NL):
            return lookup(self._code_sum(self.sid_NL), index, self.kernels)
        return self._code_sum(self.sid_NL[index])

    def _code_sum(self, codes: Tensor) -> Tensor:
        return lookup_sum(codes, list(self.code))

    def history_vector(self, index: Tensor) -> Tensor:
        """An item of a history, [...] -> [..., D]: its semantic ID, or its hashed row."""
        if self.hashed_items is not None:
            return self.hashed_items(index, self.config.items)
        return self.item_vector(index)

    def history_lookups(self) -> ItemLookups:
        """The same as a sum of table rows."""
        if (hashed := self.hashed_items) is not None:
            return ItemLookups([hashed.table], lambda index: hashed.bucket(index, self.config.items)[..., None])
        return ItemLookups([cast(Table, table) for table in self.code], lambda index: self.sid_NL[index])

    def encode(self, batch: dict[str, Tensor], packs: bool = True) -> tuple[Tensor, Tensor | None]:
        """Context of each user: z [B, T, C] and its mask [B, T], None if the batch has full histories only.

        Without `packs` padding is computed too, so that no shape depends on the data; z is then arbitrary there.
        With an event head, what the newest short event predicts by joins the first vector.
        """
        z_NC, layout = self.pathways(batch, self.history_vector, self.history_lookups(), packs)
        for layer in self.encoder:
            z_NC = layer(z_NC, layout)
        z_BTC = layout.pad(self.norm_context(z_NC))
        if layout.causal is not None:
            newest = layout.causal[1] - 1
            query_BC = self.event_query(z_BTC[:, newest])
            z_BTC = _joined(z_BTC, query_BC if layout.mask_BT is None else query_BC * layout.mask_BT[:, newest, None])
        if self.config.history_bag:
            z_BTC = _joined(z_BTC, self.bag.vector(batch))
        return z_BTC, layout.mask_BT

    def context_kv(self, z_BTC: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of every decoder layer: computed once, shared by all targets and beams.

        The lazy decoder's context is both, for all layers: k = RMSNorm(C), v = k.
        """
        if self.config.lazy:
            k = z_BTC.unflatten(-1, (self.config.kv_heads, -1)).transpose(1, 2)
            return [(k, k)] * len(self.decoder)
        return [cast(DecoderLayer, layer).cross_attn.project_kv(z_BTC) for layer in self.decoder]

    def _training_kv(self, z_BTC: Tensor, mask_BT: Tensor | None, queries: int) -> Sequence[ContextKV]:
        """`context_kv`; side by side where all is valid and the kernel of few queries takes so many a user."""
        attention = [cast(DecoderLayer, layer).cross_attn for layer in self.decoder]
        if mask_BT is None and attention[0].reads(z_BTC, queries):
            return [a.heads_kv(z_BTC) for a in attention]
        return self.context_kv(z_BTC)

    def decode(self, prefix_BMP: Tensor, context_kv: list[tuple[Tensor, Tensor]], mask_BT: Tensor | None) -> Tensor:
        """Hidden states of a list's decoder tokens given its first codes: [B, M, n] -> [B, M, P, D].

        The codes of a list stand end to end, BOS stands before each item: P = n + 1 + n // L. A point-wise prefix has
        at most two codes.
        """
        layout = Layout.of(prefix_BMP.shape[0], prefix_BMP.shape[1], None)
        return layout.pad(self._decode(layout.pack(prefix_BMP), layout, context_kv, mask_BT))

    def _decode(
        self, prefix_Nn: Tensor, layout: Layout, context_kv: Sequence[ContextKV], mask_BT: Tensor | None
    ) -> Tensor:
        """`decode` of packed targets: [N, n] -> [N, P, D]."""
        N, n = prefix_Nn.shape
        tokens = []
        for i in range(n + 1):
            level = i % self.config.levels
            if level == 0:
                tokens.append(self.bos_D.expand(N, -1))
            if i < n:
                tokens.append(self._code(level)(prefix_Nn[:, i]))
        d = torch.stack(tokens, 1) + self.place_PD[: len(tokens)]
        for layer, kv in zip(self.decoder, context_kv):
            d = layer(d, layout, kv, _as_keys(mask_BT))
        return self.norm_out(d)

    def decode_step(
        self,
        code_BM: Tensor | None,
        place: int,
        past: list[Cache] | None,
        context_kv: list[tuple[Tensor, Tensor]],
        mask_BT: Tensor | None,
    ) -> tuple[Tensor, list[Cache]]:
        """Hidden state [B, M, D] of the decoder token at `place`, and the grown cache. code_BM: its code; None = BOS.

        Equal to that column of `decode` (tested), at the cost of one token instead of the whole prefix.
        """
        if code_BM is None:
            d = self.bos_D.expand(context_kv[0][0].shape[0], past[0][-1][0].shape[1] if past else 1, -1)
        else:
            d = self._code(place % (self.config.levels + 1) - 1)(code_BM)
        d, cache = d + self.place_PD[place], []
        for i, (layer, kv) in enumerate(zip(self.decoder, context_kv)):
            d, grown = cast(DecoderLayer, layer).step(d, past[i] if past else [], kv, _as_keys(mask_BT))
            cache.append(grown)
        return self.norm_out(d), cache

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """[..., D] -> [..., K]: the level's head against its code embeddings (tied, without the unknown code)."""
        return F.linear(self.head[level](hidden), self._code(level).weight[:-1], self.code_bias_LK[level])

    def code_logits(
        self, codes_BML: Tensor, z_BTC: Tensor, mask_BT: Tensor | None, real_BM: Tensor | None = None
    ) -> list[Tensor]:
        """Teacher-forced logits of each level, three tensors [B, M, K].

        Session-wise, a user's targets are cut into lists of m in their order. `real_BM` is False where a target is
        padding: such targets are not computed (their logits are 0) and stand in no list. A compiled step, whose shapes
        are better fixed, computes them all the same, behind the real ones.
        """
        if real_BM is None:
            real_BM = codes_BML.new_ones(codes_BML.shape[:2], dtype=torch.bool)
            packs = False
        else:
            packs = not torch.compiler.is_compiling()
        L, lists = self.config.levels, -(-codes_BML.shape[1] // self.config.session_items)
        kv = self._training_kv(z_BTC, mask_BT, lists * self.config.decoder_tokens)
        if self.config.session_items > 1:
            hidden = self._decode_lists(codes_BML, kv, mask_BT, real_BM, packs)
            return [self.level_logits(hidden[:, :, level], level) for level in range(L)]
        layout = Layout.of(len(real_BM), real_BM.shape[1], real_BM if packs else None)
        hidden = self._decode(layout.pack(codes_BML)[:, :-1], layout, kv, mask_BT)
        return [layout.pad(self.level_logits(hidden[:, level], level)) for level in range(L)]

    def _decode_lists(
        self, codes_BML: Tensor, kv: Sequence[ContextKV], mask_BT: Tensor | None, real_BM: Tensor, packs: bool
    ) -> Tensor:
        """[B, M, L] -> [B, M, L, D], hidden states that predict the codes of targets that stand in lists."""
        B, M, L = codes_BML.shape
        m = self.config.session_items
        order_BM = real_BM.long().argsort(dim=1, descending=True, stable=True)
        codes = codes_BML.gather(1, order_BM[..., None].expand(-1, -1, L))
        lists = F.pad(codes, (0, 0, 0, -M % m)).view(B, -1, m * L)
        begun_BS = real_BM.gather(1, order_BM)[:, ::m]  # a list whose first place is empty is none
        layout = Layout.of(B, begun_BS.shape[1], begun_BS if packs else None)
        hidden = self._decode(layout.pack(lists)[:, :-1], layout, kv, mask_BT)
        hidden = layout.pad(F.pad(hidden, (0, 0, 0, 1)))  # a place for the last code
        hidden = hidden.view(B, -1, L + 1, hidden.shape[-1])[:, :M, :L]
        back = order_BM.argsort(dim=1)
        return hidden.gather(1, back[..., None, None].expand_as(hidden))

    def item_logits(self, z_BTD: Tensor) -> Tensor:
        """[B, N] item-level logits from the static position, which has read the whole context."""
        assert self.config.item_head, "the configuration has no item head"
        return F.linear(self.item_query(z_BTD[:, 0]), self.item_table(), self.item_bias_N)

    def event_logits(self, z: Tensor) -> Tensor:
        """Encoded short events [..., D] -> [..., N]: item-level logits of what came after each."""
        assert self.config.event_head, "the configuration has no event head"
        return F.linear(self.item_query(self.event_query(z)), self.item_table(), self.item_bias_N)

    def item_table(self) -> Tensor:
        """[N, D]: the item head's row of each item, its codes and a residual of its own."""
        index = torch.arange(self.config.items, device=self.sid_NL.device)
        return self._code_sum(self.sid_NL[:-1]) + self.item_residual(index)


def _joined(z_BTC: Tensor, x_BC: Tensor) -> Tensor:
    """The context with x added to its first vector, which the item head reads."""
    return z_BTC + F.pad(x_BC[:, None], (0, 0, 0, z_BTC.shape[1] - 1))


def _as_keys(mask_BT: Tensor | None) -> Tensor | None:
    return None if mask_BT is None else mask_BT[:, None, None]
