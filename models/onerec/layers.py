"""Attention and feed-forward blocks, pre-RMSNorm. Dense blocks have two matrices, as the published sizes imply.

Legend: B batch, T tokens (queries), S tokens (keys), D model width, H heads, F inner width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention over given keys; `project_kv` lets beams share the keys and values of one context."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def project_kv(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, H, S, D/H]."""
        B, S, D = x_BSD.shape
        k, v = self.kv(x_BSD).view(B, S, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(
        self, x_BTD: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from x to kv. mask: bool, True = may look, broadcastable to [B, H, T, S]."""
        B, T, D = x_BTD.shape
        q = self.q(x_BTD).view(B, T, self.heads, D // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q, *kv, attn_mask=mask, is_causal=causal, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Linear, LeakyReLU, Linear: the form that TR section 2.2 prints for the pathway projections."""

    def __init__(self, d_in: int, d_inner: int, d_out: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(d_in, d_inner)
        self.down = nn.Linear(d_inner, d_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(F.leaky_relu(self.up(x))))


class EncoderLayer(nn.Module):
    """z + SelfAttn(norm z), then z + FFN(norm z), bidirectional (TR section 2.2.4)."""

    def __init__(self, d_model: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_attn, self.norm_ffn = nn.RMSNorm(d_model, eps=1e-6), nn.RMSNorm(d_model, eps=1e-6)
        self.attn = Attention(d_model, heads, dropout)
        self.ffn = FeedForward(d_model, ffn_dim, d_model, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, z_BTD: Tensor, mask: Tensor) -> Tensor:
        x = self.norm_attn(z_BTD)
        z_BTD = z_BTD + self.drop(self.attn(x, self.attn.project_kv(x), mask))
        return z_BTD + self.drop(self.ffn(self.norm_ffn(z_BTD)))


class QFormerBlock(nn.Module):
    """Queries read a long sequence, then an FFN. Residuals are ours: the report prints none (docs/decisions.md)."""

    def __init__(self, d_model: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_q, self.norm_ffn = nn.RMSNorm(d_model, eps=1e-6), nn.RMSNorm(d_model, eps=1e-6)
        self.attn = Attention(d_model, heads, dropout)
        self.ffn = FeedForward(d_model, ffn_dim, d_model, dropout)

    def forward(self, h_BTD: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        h_BTD = h_BTD + self.attn(self.norm_q(h_BTD), kv, mask)
        return h_BTD + self.ffn(self.norm_ffn(h_BTD))
