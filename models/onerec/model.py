"""OneRec: four pathways, bidirectional encoder, MoE decoder that spells an item's semantic ID (TR sections 2.2, 2.3).

The model knows nothing of training, files or serving. Beside the published next-token heads it carries an item-level
softmax on the encoder (docs/decisions.md): it trains the encoder on whole items and joins the beam's score.

Legend: B users, M targets a user, L=3 levels, K codebook size, T context tokens, D model width, N items.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.layers import Attention, EncoderLayer
from models.onerec.moe import MoE
from models.onerec.pathways import Pathways


class DecoderLayer(nn.Module):
    """Causal self-attention over the code prefix, cross-attention to the context, MoE; RMSNorm before all three."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm_self, self.norm_cross, self.norm_moe = (nn.RMSNorm(d, eps=1e-6) for _ in range(3))
        self.self_attn = Attention(d, config.heads, config.dropout)
        self.cross_attn = Attention(d, config.heads, config.dropout)
        self.moe = MoE(d, config.experts, config.experts_per_token, config.expert_dim, config.balance_rate)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, d_BMLD: Tensor, context_kv: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        B, M, L, D = d_BMLD.shape
        x = self.norm_self(d_BMLD).view(B * M, L, D)
        d_BMLD = d_BMLD + self.drop(self.self_attn(x, self.self_attn.project_kv(x), causal=True)).view(B, M, L, D)
        x = self.norm_cross(d_BMLD).view(B, M * L, D)
        d_BMLD = d_BMLD + self.drop(self.cross_attn(x, context_kv, mask)).view(B, M, L, D)
        return d_BMLD + self.drop(self.moe(self.norm_moe(d_BMLD)))

    def step(
        self, d_BMD: Tensor, past: tuple[Tensor, Tensor] | None, context_kv: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One new token of every beam against the keys and values of its prefix, each [B, M, H, P, D/H]."""
        B, M, D = d_BMD.shape
        x = self.norm_self(d_BMD).view(B * M, 1, D)
        k, v = (t.unflatten(0, (B, M)) for t in self.self_attn.project_kv(x))
        if past is not None:
            k, v = torch.cat([past[0], k], 3), torch.cat([past[1], v], 3)
        d_BMD = d_BMD + self.self_attn(x, (k.flatten(0, 1), v.flatten(0, 1))).view(B, M, D)
        d_BMD = d_BMD + self.cross_attn(self.norm_cross(d_BMD), context_kv, mask)
        return d_BMD + self.moe(self.norm_moe(d_BMD)), (k, v)


class OneRec(nn.Module):
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
        self.code = nn.ModuleList(nn.Embedding(K + 1, d) for _ in range(config.levels))
        self.item_residual = nn.Embedding(config.items + 1, d)
        for level in range(config.levels):
            nn.init.normal_(self._code(level).weight, std=d**-0.5)
        nn.init.zeros_(self.item_residual.weight)
        self.pathways = Pathways(config)
        self.encoder = nn.ModuleList(
            EncoderLayer(d, config.heads, config.ffn_dim, config.dropout) for _ in range(config.encoder_layers)
        )
        self.norm_context = nn.RMSNorm(d, eps=1e-6)
        self.bos_D = nn.Parameter(torch.randn(d) * 0.02)
        self.level_LD = nn.Parameter(torch.randn(config.levels, d) * 0.02)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm_out = nn.RMSNorm(d, eps=1e-6)
        self.head = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(config.levels))
        self.code_bias_LK = nn.Parameter(torch.zeros(config.levels, K))
        self.item_query = nn.Linear(d, d)
        self.item_bias_N = nn.Parameter(torch.zeros(config.items))

    def _code(self, level: int) -> nn.Embedding:
        return cast(nn.Embedding, self.code[level])

    def item_vector(self, index: Tensor) -> Tensor:
        """Catalogue index [...] -> [..., D]: the sum of its three code embeddings."""
        codes = self.sid_NL[index]
        vector = self._code(0)(codes[..., 0])
        for level in range(1, self.config.levels):
            vector = vector + self._code(level)(codes[..., level])
        return vector

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Context of each user: z [B, T, D] and its mask [B, T]."""
        z_BTD, mask_BT = self.pathways(batch, self.item_vector)
        for layer in self.encoder:
            z_BTD = layer(z_BTD, mask_BT[:, None, None])
        return self.norm_context(z_BTD), mask_BT

    def context_kv(self, z_BTD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of every decoder layer: computed once, shared by all targets and beams."""
        return [cast(DecoderLayer, layer).cross_attn.project_kv(z_BTD) for layer in self.decoder]

    def decode(self, prefix_BML: Tensor, context_kv: list[tuple[Tensor, Tensor]], mask_BT: Tensor) -> Tensor:
        """Hidden state after BOS and each code of the prefix: [B, M, P] -> [B, M, P+1, D]. P <= 2."""
        B, M, P = prefix_BML.shape
        steps = [self.bos_D.expand(B, M, -1)] + [self._code(i)(prefix_BML[..., i]) for i in range(P)]
        d = torch.stack(steps, 2) + self.level_LD[: P + 1]
        for layer, kv in zip(self.decoder, context_kv):
            d = layer(d, kv, mask_BT[:, None, None])
        return self.norm_out(d)

    def decode_step(
        self,
        code_BM: Tensor | None,
        level: int,
        past: list[tuple[Tensor, Tensor]] | None,
        context_kv: list[tuple[Tensor, Tensor]],
        mask_BT: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Hidden state [B, M, D] that predicts `level`, and the grown cache. code_BM: the code before it; None = BOS.

        Equal to the last column of `decode` (tested), at the cost of one token instead of the whole prefix.
        """
        d = self.bos_D.expand(len(mask_BT), 1, -1) if code_BM is None else self._code(level - 1)(code_BM)
        d, cache = d + self.level_LD[level], []
        for i, (layer, kv) in enumerate(zip(self.decoder, context_kv)):
            d, grown = cast(DecoderLayer, layer).step(d, past[i] if past else None, kv, mask_BT[:, None, None])
            cache.append(grown)
        return self.norm_out(d), cache

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """[..., D] -> [..., K]: the level's head against its code embeddings (tied, without the unknown code)."""
        return F.linear(self.head[level](hidden), self._code(level).weight[:-1], self.code_bias_LK[level])

    def code_logits(self, codes_BML: Tensor, z_BTD: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """Teacher-forced logits of each level, three tensors [B, M, K]."""
        hidden = self.decode(codes_BML[..., :-1], self.context_kv(z_BTD), mask_BT)
        return [self.level_logits(hidden[:, :, level], level) for level in range(self.config.levels)]

    def item_logits(self, z_BTD: Tensor) -> Tensor:
        """[B, N] item-level logits from the static position, which has read the whole context."""
        query = self.item_query(z_BTD[:, 0])
        index = torch.arange(self.config.items, device=query.device)
        table = self.item_vector(index) + self.item_residual(index)
        return F.linear(query, table, self.item_bias_N)
