"""FLOPs and parameters of a configuration, counted from shapes. Only active experts count.

    python -m models.onerec.flops --size 0.935b            # the count, part by part

A product [n, a] x [a, b] is 2nab. Embedding lookups, norms, activations and softmax are left out. Attention counts
its two products over the full square, causal or not, as it is computed. Training is three times forward: the gradient
of a product is two products of the same size. The item-level head and the output heads are counted; an event head's
prediction at every short event is one of training alone.

Legend: D model width, C context width, T context tokens, M targets a user, P decoder tokens of a list.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.sizes import SIZES, lazy, session

BACKWARD = 2  # times forward


def forward_flops(
    config: OneRecConfig, targets: float = 1, lengths: tuple[float, float, float] | None = None
) -> dict[str, float]:
    """FLOPs of one user's forward pass, by part: projections, qformer, encoder, context_kv, decoder, heads.

    `lengths`: valid events of the short, positive and lifelong history (full by default; means of a batch will do for
    all but the quadratic attention). Session-wise, `targets` are rounded up to whole lists.
    """
    c, D, C = config, config.d_model, config.context_dim
    short, positive, lifelong = lengths or (c.short_len, c.positive_len, c.lifelong_len)
    T = 1 + short + positive + (lifelong if c.lazy else c.lifelong_queries)
    event = D + c.author_dim + 5 * c.feature_dim
    static = c.static_features * c.static_dim
    events = short + positive + lifelong
    flops = dict.fromkeys(("projections", "qformer", "encoder", "context_kv", "decoder", "heads"), 0.0)
    if c.lazy:
        flops["projections"] = 2.0 * C * (static + events * event)
    else:
        events += 1  # a row that becomes the learned slot
        flops["projections"] = 2.0 * D * (static + events * event + (1 + events) * D)
        keys, queries = lifelong + 1, c.lifelong_queries
        block = keys * _matrices(D, 2) + queries * _matrices(D, 2) + _attention(queries, keys, D)
        flops["qformer"] = c.lifelong_blocks * (block + queries * 4.0 * D * c.ffn_dim)
        layer = T * _matrices(D, 4) + _attention(T, T, D)
        dense = c.encoder_layers - c.encoder_moe_layers
        flops["encoder"] = c.encoder_layers * layer + T * (
            dense * 4.0 * D * c.ffn_dim + c.encoder_moe_layers * _experts(c)
        )
        flops["context_kv"] = c.decoder_layers * T * _matrices(D, 2)
    lists = -(-targets // c.session_items)
    P = c.decoder_tokens
    tokens = lists * P
    layer = tokens * _matrices(D, 6) + lists * _attention(P, P, D) + _attention(tokens, T, D)
    experts = c.decoder_layers - c.decoder_dense_layers
    ffn = c.decoder_dense_layers * 4.0 * D * c.ffn_dim + experts * _experts(c)
    flops["decoder"] = c.decoder_layers * layer + tokens * ffn
    flops["heads"] = targets * c.levels * (_matrices(D, 1) + 2.0 * D * c.codebook_size)
    if c.item_head:
        flops["heads"] += _matrices(D, 1) + 2.0 * D * c.items
    if c.event_head:
        flops["heads"] += _matrices(D, 1)
    return flops


def train_flops(config: OneRecConfig, targets: float = 1, lengths: tuple[float, float, float] | None = None) -> float:
    """FLOPs of one user's forward and backward pass: what MFU divides by the time and the device's peak."""
    forward = sum(forward_flops(config, targets, lengths).values())
    if config.event_head:
        pairs = max((lengths[0] if lengths else config.short_len) - 1, 0)
        forward += pairs * (_matrices(config.d_model, 2) + 2.0 * config.d_model * config.items)
    return (1 + BACKWARD) * forward


def _matrices(width: int, count: int) -> float:
    """`count` square products for one token."""
    return 2.0 * count * width * width


def _attention(queries: float, keys: float, width: int) -> float:
    """q k^T and p v over all heads."""
    return 4.0 * queries * keys * width


def _experts(c: OneRecConfig) -> float:
    """Router, active experts and the shared one, for one token: SwiGLU has three matrices."""
    return 2.0 * c.d_model * c.experts + 6.0 * c.d_model * (c.experts_per_token * c.expert_dim + c.shared_expert_dim)


def count_parameters(config: OneRecConfig) -> dict[str, int]:
    """Parameters by part; nothing is allocated.

    codes (the SID tables), layers (encoder and decoder), features (tables of static and event features, hashed items),
    pathways (projections, QFormer, positions), heads (output projections, BOS and places), items (item and event head,
    bag).
    """
    with torch.device("meta"):
        model = OneRec(config, torch.zeros(config.items, config.levels, dtype=torch.int64))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    counts = dict.fromkeys(("codes", "layers", "features", "pathways", "heads", "items"), 0)
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        if part == "code":
            group = "codes"
        elif part in ("item_residual", "item_query", "item_bias_N", "event_query", "bag"):
            group = "items"
        elif id(p) in tables:
            group = "features"
        elif part in ("encoder", "decoder", "pathways"):
            group = "pathways" if part == "pathways" else "layers"
        else:
            group = "heads"
        counts[group] += p.numel()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="FLOPs and parameters of a named size.")
    parser.add_argument("--size", default="0.935b", choices=list(SIZES))
    parser.add_argument("--variant", default="point-wise", choices=["point-wise", "session-wise", "lazy"])
    parser.add_argument("--targets", type=int, default=1, help="targets a user (1)")
    args = parser.parse_args()
    config = SIZES[args.size](items=100_000, static_features=26, codebook_size=8192)
    config = {"point-wise": lambda c: c, "session-wise": session, "lazy": lazy}[args.variant](config)
    print(f"{args.size} {args.variant}: forward GFLOP a user with {args.targets} target(s)")
    flops = forward_flops(config, args.targets)
    for name, value in (
        *flops.items(),
        ("forward", sum(flops.values())),
        ("training", train_flops(config, args.targets)),
    ):
        print(f"  {name:<12}{value / 1e9:10.3f}")
    print("parameters, millions")
    for name, value in count_parameters(config).items():
        print(f"  {name:<12}{value / 1e6:10.3f}")


if __name__ == "__main__":
    main()
