"""Attention and feed-forward blocks, pre-RMSNorm. Dense blocks have two matrices, as the published sizes imply.

Legend: B users, T tokens (queries), S tokens (keys), N packed rows, D model width, H heads, G key-value heads, F inner
width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.kernels import MOST_PAIRS, UsesKernels
from models.onerec.moe import MoE
from models.onerec.rows import Layout, attend, infers, read_few, reads_few

Cache = list[tuple[Tensor, Tensor]]  # keys and values of a layer's prefix, place by place


class Attention(UsesKernels, nn.Module):
    """Multi-head attention over given keys; `project_kv` lets beams share the keys and values of one context.

    Without `own_kv` there is no such projection: keys and values are given ready, as V2's lazy decoder wants.
    """

    def __init__(self, d_model: int, heads: int, dropout: float, own_kv: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=False) if own_kv else None
        self.out = nn.Linear(d_model, d_model, bias=False)

    def split_kv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [..., H, D/H]."""
        assert self.kv is not None
        # Two products: one would have to put the gradients of keys and values side by side first, a copy of both.
        weight_k, weight_v = self.kv.weight.chunk(2)
        shape = (self.heads, x.shape[-1] // self.heads)
        return F.linear(x, weight_k).unflatten(-1, shape), F.linear(x, weight_v).unflatten(-1, shape)

    def project_kv(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, H, S, D/H]."""
        k, v = self.split_kv(x_BSD)
        return k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self, x_BTD: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from x to kv, each [B, G, S, D/H]. mask: bool, True = may look, broadcastable to [B, H, T, S].

        With G < H, groups of H/G query heads share a key-value head; then `causal` is not possible.
        """
        B, T, D = x_BTD.shape
        q = self.q(x_BTD).view(B, T, self.heads, D // self.heads).transpose(1, 2)
        G = kv[0].shape[1]
        if self.heads != G:  # the heads of a group as more queries of one head: no copy of keys, and any mask kernel
            assert not causal
            q = q.reshape(B, G, self.heads // G * T, D // self.heads)
        if mask is not None and mask.shape[1:3] == (1, 1) and not causal and self.kernels.inference and infers(q):
            from models.onerec import inference_kernels  # needs Triton, which comes with PyTorch for CUDA

            y = inference_kernels.attend_masked(q, *kv, mask[:, 0, 0]).transpose(1, 2)
        else:
            y = F.scaled_dot_product_attention(
                q, *kv, attn_mask=mask, is_causal=causal, dropout_p=self.dropout if self.training else 0.0
            )
        return self.out(y.reshape(B, self.heads, T, D // self.heads).transpose(1, 2).reshape(B, T, D))

    def few(self, x_BMD: Tensor, kv: Cache) -> Tensor:
        """Each row of x attends to a handful of keys of its own, one of each pair: [B, M, D].

        So few keys are read once by plain arithmetic; an attention kernel works in blocks of 64.
        """
        q_BMHd = self.q(x_BMD).unflatten(-1, (self.heads, x_BMD.shape[-1] // self.heads))
        if self.kernels.inference and len(kv) <= MOST_PAIRS and infers(q_BMHd):
            from models.onerec import inference_kernels

            return self.out(inference_kernels.attend_few(q_BMHd, *(list(x) for x in zip(*kv))).flatten(2))
        q_BMHd = q_BMHd.float()
        score_PBMH = torch.stack([(q_BMHd * k).sum(-1) for k, _ in kv]) * q_BMHd.shape[-1] ** -0.5
        p_PBMH = torch.softmax(score_PBMH, 0)
        y_BMHd = sum(p[..., None] * v for p, (_, v) in zip(p_PBMH, kv))
        return self.out(cast(Tensor, y_BMHd).flatten(2).to(x_BMD.dtype))

    def heads_kv(self, y_SD: Tensor) -> Tensor:
        """Keys and values side by side, [S, 2, H, D/H]: one product, for `read`."""
        assert self.kv is not None
        return self.kv(y_SD).unflatten(-1, (2, self.heads, y_SD.shape[-1] // self.heads))

    def read(self, x_BQD: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, to: Layout) -> Tensor:
        """Attend from a few rows a user to ready-made keys and values of packed rows: [B, Q, D]."""
        q = self.q(x_BQD).unflatten(-1, kv_S2Hd.shape[2:])
        return self.out(read_few(q, kv_S2Hd, slot_2Hd, to).flatten(2))

    def reads(self, y: Tensor, queries: int) -> bool:
        """Whether `read` can take the place of `packed` and `forward` for so many queries a user."""
        no_dropout = not (self.training and self.dropout)
        takes = self.kernels.few_queries and reads_few(y, y.shape[-1] // self.heads, queries)
        return self.kv is not None and no_dropout and takes

    def packed(self, x_ND: Tensor, y_SD: Tensor, of: Layout, to: Layout) -> Tensor:
        """Attend from packed rows x (laid out by `of`) to packed rows y (by `to`): [N, D]."""
        q = self.q(x_ND).unflatten(-1, (self.heads, x_ND.shape[-1] // self.heads))
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(q, *self.split_kv(y_SD), of, to, dropout, self.kernels.inference).flatten(1))


class FeedForward(UsesKernels, nn.Module):
    """Linear, LeakyReLU, Linear: the form that TR section 2.2 prints for the pathway projections."""

    def __init__(self, d_in: int, d_inner: int, d_out: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(d_in, d_inner)
        self.down = nn.Linear(d_inner, d_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        own = torch.is_grad_enabled() and self.kernels.output_kept
        x = self.up(x)
        return self.down(self.drop(LeakyReLU.apply(x) if own else F.leaky_relu(x)))


class LeakyReLU(torch.autograd.Function):
    """F.leaky_relu that keeps its result, which the next product keeps anyway, and not its input: the signs agree."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = F.leaky_relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, gradient, gradient * 0.01)


def feed_forward(config: OneRecConfig, moe: bool) -> nn.Module:
    """A layer's second half: experts, or the dense two-matrix block."""
    c = config
    if not moe:
        return FeedForward(c.d_model, c.ffn_dim, c.d_model, c.dropout)
    return MoE(c.d_model, c.experts, c.experts_per_token, c.expert_dim, c.balance_rate, c.shared_expert_dim, c.affinity)


class EncoderLayer(nn.Module):
    """z + SelfAttn(norm z), then z + FFN(norm z), bidirectional (TR section 2.2.4)."""

    def __init__(self, config: OneRecConfig, moe: bool) -> None:
        super().__init__()
        d = config.d_model
        self.norm_attn, self.norm_ffn = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.attn = Attention(d, config.heads, config.dropout)
        self.ffn = feed_forward(config, moe)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, z_ND: Tensor, layout: Layout) -> Tensor:
        x = self.norm_attn(z_ND)
        z_ND = z_ND + self.drop(self.attn.packed(x, x, layout, layout))
        return z_ND + self.drop(self.ffn(self.norm_ffn(z_ND)))


class QFormerBlock(nn.Module):
    """Queries read a long sequence, then an FFN. Its residuals are ours (docs/decisions/model.md)."""

    def __init__(self, d_model: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_q, self.norm_ffn = nn.RMSNorm(d_model, eps=1e-6), nn.RMSNorm(d_model, eps=1e-6)
        self.attn = Attention(d_model, heads, dropout)
        self.ffn = FeedForward(d_model, ffn_dim, d_model, dropout)

    def forward(self, h_ND: Tensor, events_SD: Tensor, of: Layout, to: Layout, slot_D: Tensor | None = None) -> Tensor:
        """Packed queries [N, D] (laid out by `of`) read packed events [S, D] (by `to`).

        With a slot, which takes a full layout of queries, it stands for the first row of each user.
        """
        if slot_D is None:
            h_ND = h_ND + self.attn.packed(self.norm_q(h_ND), events_SD, of, to)
        else:
            slot_2Hd = self.attn.heads_kv(slot_D)
            y_BQD = self.attn.read(of.pad(self.norm_q(h_ND)), self.attn.heads_kv(events_SD), slot_2Hd, to)
            h_ND = h_ND + of.pack(y_BQD)
        return h_ND + self.ffn(self.norm_ffn(h_ND))


class DecoderLayer(nn.Module):
    """Causal self-attention over the code prefix, cross-attention to the context, FFN or MoE; RMSNorm before all three.

    The lazy decoder (V2) looks at the context first, and the context's keys and values are ready-made.
    """

    def __init__(self, config: OneRecConfig, moe: bool) -> None:
        super().__init__()
        d = config.d_model
        self.norm_self, self.norm_cross, self.norm_ffn = (nn.RMSNorm(d, eps=1e-6) for _ in range(3))
        self.self_attn = Attention(d, config.heads, config.dropout)
        self.cross_attn = Attention(d, config.heads, config.dropout, own_kv=not config.lazy)
        self.ffn = feed_forward(config, moe)
        self.drop = nn.Dropout(config.dropout)
        self.lazy = config.lazy

    def forward(
        self, d_NPD: Tensor, layout: Layout, context_kv: tuple[Tensor, Tensor] | Tensor, mask: Tensor | None
    ) -> Tensor:
        """All P tokens of every target (or list) at once; the targets are packed rows, laid out by `layout`.

        context_kv: each [B, G, T, D/H], or side by side [B, T, 2, H, D/H], all valid, for the kernel of few queries.
        """

        def read_prefix(d: Tensor) -> Tensor:
            x = self.norm_self(d)
            return self.self_attn(x, self.self_attn.project_kv(x), causal=True)

        def read_context(d: Tensor) -> Tensor:
            x_BMPD = layout.pad(self.norm_cross(d))
            if isinstance(context_kv, Tensor):
                of = Layout.of(context_kv.shape[0], context_kv.shape[1], None)
                y = self.cross_attn.read(x_BMPD.flatten(1, 2), context_kv.flatten(0, 1), None, of)
            else:
                y = self.cross_attn(x_BMPD.flatten(1, 2), context_kv, mask)
            return layout.pack(y.view(x_BMPD.shape))

        d = d_NPD
        for read in (read_context, read_prefix) if self.lazy else (read_prefix, read_context):
            d = d + self.drop(read(d))
        return d + self.drop(self.ffn(self.norm_ffn(d)))

    def step(
        self, d_BMD: Tensor, past: Cache, context_kv: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """One new token of every beam against the keys and values of its prefix, one pair a place.

        Each is [B, M, H, D/H], or [B, 1, H, D/H] where all beams of a user share it.
        """
        grown = past

        def read_prefix(d: Tensor) -> Tensor:
            nonlocal grown
            x = self.norm_self(d)
            grown = [*past, self.self_attn.split_kv(x)]
            return self.self_attn.few(x, grown)

        def read_context(d: Tensor) -> Tensor:
            return self.cross_attn(self.norm_cross(d), context_kv, mask)

        d = d_BMD
        for read in (read_context, read_prefix) if self.lazy else (read_prefix, read_context):
            d = d + read(d)
        return d + self.ffn(self.norm_ffn(d)), grown
