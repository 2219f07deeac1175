"""QFormer and the item encoder around it: a few learned queries read an item's tokens (TR section 2.1).

Tokens of an item: what the frozen content encoder says about caption, ASR, OCR, cover and frames, then one learned
token a tag, one for the author, and one that every item has (so that attention always has something to read).

    encoder = ItemEncoder(ItemEncoderConfig()); encoder(batch)  # [B, 4, 512]

Legend: B items, N content tokens, T tags, Q queries, D width of tokens and queries (d_t), E width of content tokens.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemEncoderConfig:
    """`content_dim` is the width of the content encoder's tokens, 0 without one. Tags and authors are hashed into their
    buckets; with far fewer of them than buckets, few share one. `ffn`: inner width over dim."""

    dim: int = 512
    queries: int = 4
    layers: int = 4
    heads: int = 8
    ffn: int = 4
    residual: bool = True
    content_dim: int = 0
    tag_buckets: int = 4096
    author_buckets: int = 16384

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")


@dataclasses.dataclass
class TokenBatch:
    """Inputs of some items. tags and author are hashed to buckets; -1 is none."""

    content_BNE: Tensor
    content_BN: Tensor  # True where a token is
    tags_BT: Tensor
    author_B: Tensor


class QFormerLayer(nn.Module):
    """Q <- CrossAttn(Q, M, M); Q <- FFN(RMSNorm(Q)). With `residual` both are added to what came in.

    TR prints neither residuals nor a norm before the attention; see docs/decisions/tokenizer.md for the measurement.
    """

    def __init__(self, config: ItemEncoderConfig) -> None:
        super().__init__()
        D, self.heads, self.residual = config.dim, config.heads, config.residual
        self.norm_q, self.norm_f = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
        self.q, self.out = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.kv = nn.Linear(D, 2 * D, bias=False)
        self.up, self.down = nn.Linear(D, config.ffn * D), nn.Linear(config.ffn * D, D)

    def forward(self, query_BQD: Tensor, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Queries that have read the tokens whose mask is True: [B, Q, D]. Each item needs one such token at least."""
        B, Q, D = query_BQD.shape
        q = self._split(self.q(self.norm_q(query_BQD)))
        k, v = (self._split(x) for x in self.kv(tokens_BND).chunk(2, -1))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BN[:, None, None, :])
        read_BQD = self.out(read.transpose(1, 2).reshape(B, Q, D))
        x = query_BQD + read_BQD if self.residual else read_BQD
        y = self.down(F.gelu(self.up(self.norm_f(x))))
        return x + y if self.residual else y

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ItemEncoder(nn.Module):
    """Content tokens, tags and author to M~ [B, Q, D]. `vectors` gives what is clustered and compared."""

    def __init__(self, config: ItemEncoderConfig) -> None:
        super().__init__()
        self.config, D = config, config.dim
        self.anchor = nn.Parameter(torch.randn(D) * D**-0.5)
        self.tag = nn.Embedding(config.tag_buckets, D)
        self.author = nn.Embedding(config.author_buckets, D)
        self.tag_known: Tensor
        self.author_known: Tensor
        self.register_buffer("tag_known", torch.zeros(config.tag_buckets, dtype=torch.bool))
        self.register_buffer("author_known", torch.zeros(config.author_buckets, dtype=torch.bool))
        if config.content_dim:
            self.project = nn.Linear(config.content_dim, D)
        self.norm_m = nn.RMSNorm(D, eps=1e-6)
        self.query = nn.Parameter(
            torch.randn(config.queries, D) * 0.02
        )  # small: what is read decides, not the constant
        self.layers = nn.ModuleList(QFormerLayer(config) for _ in range(config.layers))

    def forward(self, batch: TokenBatch) -> Tensor:
        """M~ [B, Q, D]."""
        B, D = len(batch.author_B), self.config.dim
        tags_BT, author_B1 = batch.tags_BT.clamp_min(0), batch.author_B[:, None].clamp_min(0)
        tokens = [self.anchor.expand(B, 1, D), self.tag(tags_BT), self.author(author_B1)]
        masks = [
            torch.ones_like(author_B1, dtype=torch.bool),
            (batch.tags_BT >= 0) & self.tag_known[tags_BT],
            (batch.author_B[:, None] >= 0) & self.author_known[author_B1],
        ]
        if self.config.content_dim:
            tokens.append(self.project(batch.content_BNE))
            masks.append(batch.content_BN)
        tokens_BND, mask_BN = self.norm_m(torch.cat(tokens, 1)), torch.cat(masks, 1)
        query_BQD = self.query.expand(B, -1, -1)
        for layer in self.layers:
            query_BQD = layer(query_BQD, tokens_BND, mask_BN)
        return query_BQD

    @torch.no_grad()
    def learn_of(self, tags: Tensor, authors: Tensor) -> None:
        """Name the tags and authors (buckets, -1 none) of the training items: others stay masked, being noise."""
        self.tag_known[tags[tags >= 0]] = True
        self.author_known[authors[authors >= 0]] = True

    def vectors(self, batch: TokenBatch) -> Tensor:
        """Unit vectors [B, Q * D]: M~ flattened. Their squared distance is 2 - 2 cosine, so that K-means on them and
        the contrastive loss speak of the same similarity."""
        return F.normalize(self(batch).flatten(1), dim=-1)
