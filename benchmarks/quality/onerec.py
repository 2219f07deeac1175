"""OneRec for plain item sequences: the model of models/onerec with one pathway, an event a position.

    model = SequenceOneRec(OneRecSequences(), codes_NL, content_NF)

What is kept: encoder, decoder with one head a level, trie, beam search, item-level head whose log-probability joins the
beam's. What differs from the four pathways of `models.onerec.pathways`: these sets know no users, no times and no
signals, so an event is its item: the sum of code embeddings, a projection of its content vector and an embedding of
its own, each of which can be left out. The encoder is causal, so that one pass over a user trains every position as a
target (multi-target context sharing); `causal=False` encodes each sliding window by itself, in both directions.

Legend: B users, T events, S = 1 + T context positions, D width, N items (also the padding's number), L=3 levels, K
codebook size, C candidates.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.data import MAX_HISTORY
from models.onerec.beam_search import beam_search
from models.onerec.config import OneRecConfig
from models.onerec.layers import Attention, EncoderLayer, FeedForward
from models.onerec.model import OneRec
from models.onerec.rows import Layout
from models.tokenizer.trie import Trie


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRecSequences:
    """Levers of the table, each with the value that was chosen on validation; sizes of the data are derived.

    codes, content, own: what an event is made of. dropout: of the encoder; decoder_dropout: of the decoder;
    table_dropout: of the item vectors themselves, drawn once a step for history and item-level head alike. item_loss:
    weight of the item-level head's loss (0: no head); negatives: how many uniform items it is contrasted with (0: all).
    token_loss: weight of the next-token loss (0: the item-level head alone). smoothing: share of a code's probability
    spread over its legal siblings. legal: the codes' probabilities are over legal siblings alone, in training and in
    the joint score (the beam proposes as ever).
    """

    d_model: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    ffn_factor: int = 2
    dropout: float = 0.2
    decoder_dropout: float = 0.2
    table_dropout: float = 0.4
    codes: bool = True
    content: bool = True
    own: bool = True
    causal: bool = True
    item_loss: float = 1.0
    token_loss: float = 1.0
    negatives: int = 0
    smoothing: float = 0.0
    legal: bool = False

    def __post_init__(self) -> None:
        if not (self.codes or self.content or self.own):
            raise ValueError("an event needs at least one of codes, content and own")
        if self.item_loss <= 0 and self.token_loss <= 0:
            raise ValueError("item_loss and token_loss are both 0; at least one head must be trained")

    def sizes(self, codebook_size: int, items: int) -> OneRecConfig:
        """The configuration of `models.onerec` with one expert and no features but the item."""
        return OneRecConfig(
            codebook_size=codebook_size,
            items=items,
            static_features=1,
            d_model=self.d_model,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            heads=self.heads,
            ffn_dim=self.ffn_factor * self.d_model,
            experts=1,
            experts_per_token=1,
            expert_dim=self.ffn_factor * self.d_model,
            dropout=self.dropout,
            author_buckets=1,
            tag_buckets=1,
            static_buckets=1,
        )


class EventPathway(nn.Module):
    """History to the encoder's input: item vector + position counted from the newest event, behind a start event."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.position_TD = nn.Parameter(torch.randn(MAX_HISTORY, d_model) * d_model**-0.5)
        self.start_D = nn.Parameter(torch.randn(d_model) * d_model**-0.5)
        self.drop = nn.Dropout(dropout)

    def forward(self, items_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, 1 + T, D]."""
        B, T, D = items_BTD.shape
        return self.drop(torch.cat([self.start_D.expand(B, 1, D), items_BTD + self.position_TD[-T:]], 1))


class SequenceOneRec(OneRec):
    """`sid_NL` [N, 3] and `content_NF` [N, F] (unit rows) describe the catalogue. `trie`: what the beam may name, where
    tuples are shared and so the catalogue's own trie cannot be built."""

    content_NF: Tensor

    def __init__(
        self,
        options: OneRecSequences,
        sid_NL: np.ndarray,
        content_NF: np.ndarray,
        codebook_size: int,
        trie: Trie | None = None,
    ) -> None:
        super().__init__(options.sizes(codebook_size, len(sid_NL)), torch.from_numpy(sid_NL))
        d = options.d_model
        self.options = options
        self.pathways = EventPathway(d, options.dropout)  # type: ignore[assignment]
        content = torch.from_numpy(np.concatenate([content_NF, np.zeros_like(content_NF[:1])])).float()
        self.register_buffer("content_NF", content)
        self.content_proj = nn.Linear(content.shape[1], d, bias=False)
        nn.init.normal_(self.content_proj.weight, std=d**-0.5)
        for layer in self.decoder:  # one expert is a dense layer: without the routing it needs no sorting of tokens
            layer.ffn = FeedForward(d, options.ffn_factor * d, d, options.decoder_dropout)  # type: ignore[assignment]
        for module in self.decoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = options.decoder_dropout
            elif isinstance(module, Attention):
                module.dropout = options.decoder_dropout
        self.drop_table = nn.Dropout(options.table_dropout)
        self.own = nn.Embedding(len(sid_NL) + 1, d)
        nn.init.normal_(self.own.weight, std=d**-0.5)
        del self.item_residual, self.item_bias_N  # `own` is the residual here; history and head share one table
        self.trie = Trie.build(sid_NL, codebook_size) if trie is None else trie
        self._siblings: list[Tensor] | None = None

    def _apply(self, fn, recurse=True):  # the trie and the sibling tables follow the weights to their device
        super()._apply(fn, recurse)
        self.trie = self.trie.to(self.bos_D.device)
        return self

    def item_vector(self, index: Tensor) -> Tensor:
        """Catalogue index [...] (N: padding) -> [..., D]; the same for an event and for a row of the item head."""
        o = self.options
        parts = [super().item_vector(index)] if o.codes else []
        parts += [self.content_proj(self.content_NF[index])] if o.content else []
        parts += [self.own(index)] if o.own else []
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def table(self) -> Tensor:
        """Vectors of all items and the padding [N + 1, D], with dropout: for a step's history and item-level head."""
        return self.drop_table(self.item_vector(torch.arange(self.config.items + 1, device=self.bos_D.device)))

    def context(self, items_BT: Tensor, table_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Right-aligned histories to z [B, 1 + T, D] and its mask; z at t has read the start event and events up to t.

        The start event is always there to be attended to, so an empty or padded place is defined.
        """
        real_BT = F.pad(items_BT < self.config.items, (1, 0), value=True)
        T = real_BT.shape[1]
        mask = real_BT[:, None, None, :].expand(-1, 1, T, -1)
        if self.options.causal:
            mask = mask & torch.ones(T, T, dtype=torch.bool, device=items_BT.device).tril()
        z_BTD = self.pathways(table_ND[items_BT])
        for layer in self.encoder:
            z_BTD = _encode(cast(EncoderLayer, layer), z_BTD, mask)
        return self.norm_context(z_BTD), real_BT

    def item_states(self, z: Tensor) -> Tensor:
        """What the item-level head multiplies its table with, [..., D]."""
        return self.item_query(z)

    def token_states(self, codes_BTL: Tensor, z_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Teacher-forced hidden states [B, T, L, D] of the target after each event: target t reads context up to t.

        codes_BTL: the targets' codes; z and mask as `context` gives them, with the start event first (S = 1 + T).
        """
        B, T, L = codes_BTL.shape
        steps = [self.bos_D.expand(B, T, -1)] + [self._code(i)(codes_BTL[..., i]) for i in range(L - 1)]
        layout = Layout.of(B, T, None)
        d = layout.pack(torch.stack(steps, 2) + self.place_PD)
        causal = torch.ones(T, 1 + T, dtype=torch.bool, device=mask_BS.device).tril(1)
        mask = (mask_BS[:, None, :] & causal).repeat_interleave(L, 1)[:, None]
        for layer, kv in zip(self.decoder, self.context_kv(z_BSD)):
            d = layer(d, layout, kv, mask)
        return layout.pad(self.norm_out(d))

    def candidate_logp(self, items_BC: Tensor, z_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Log-probability of given items' semantic IDs [B, C]."""
        codes_BCL = self.sid_NL[items_BC]
        hidden = self.decode(codes_BCL[..., :-1], self.context_kv(z_BTD), mask_BT)
        total = torch.zeros(items_BC.shape, device=items_BC.device)
        for level in range(self.config.levels):
            logp = self.level_logp(hidden[:, :, level], level, items_BC)
            total = total + logp.gather(2, codes_BCL[..., level, None])[..., 0]
        return total

    def level_logp(self, hidden: Tensor, level: int, items: Tensor) -> Tensor:
        """Log-probabilities [..., K] of a level's codes after the prefixes of `items` [...]; hidden [..., D]."""
        logits = self.level_logits(hidden, level).float()
        if self.options.legal:
            logits = logits.masked_fill(self.siblings()[level][items] == 0, float("-inf"))
        return torch.log_softmax(logits, -1)

    def siblings(self) -> list[Tensor]:
        """For each level the legal codes after each item's prefix, as rows that sum to one: [N, K] a level."""
        if self._siblings is None:
            sid, K = self.sid_NL[:-1], self.config.codebook_size
            self._siblings = []
            for level in range(self.config.levels):
                _, node_N = torch.unique(sid[:, :level], dim=0, return_inverse=True) if level else (0, sid[:, 0] * 0)
                legal = torch.zeros(int(node_N.max()) + 1, K, device=sid.device)
                legal[node_N, sid[:, level]] = 1
                self._siblings.append((legal / legal.sum(1, keepdim=True))[node_N])
        return self._siblings

    @torch.no_grad()
    def candidates(self, items_BT: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Beam items and the item head's best, history excluded: items [B, C], token and item log-probabilities, mask.

        An item that both propose stands once; the mask marks the places that count. Without a token loss the item
        head proposes alone, without an item loss the beam does.
        """
        o, N = self.options, self.config.items
        table_ND = self.table()
        z_BTD, mask_BT = self.context(items_BT, table_ND)
        proposed = []
        item_logp_BN = torch.zeros(len(items_BT), N, device=items_BT.device)
        if o.item_loss > 0:
            logits = F.linear(self.item_states(z_BTD[:, -1]), table_ND[:-1]).float()
            item_logp_BN = torch.log_softmax(logits, -1)
            seen = torch.cat([item_logp_BN, item_logp_BN[:, :1]], 1).scatter(1, items_BT, float("-inf"))[:, :-1]
            proposed.append(seen.topk(min(width, N), dim=1).indices)
        if o.token_loss > 0:
            codes, _ = beam_search(self, z_BTD, mask_BT, width, self.trie)
            proposed.append(self.trie.lookup(codes).clamp_min(0))
        items_BC = torch.cat(proposed, 1).sort(1).values
        twice = torch.zeros_like(items_BC, dtype=torch.bool)
        twice[:, 1:] = items_BC[:, 1:] == items_BC[:, :-1]
        shown = (items_BC[:, :, None] == items_BT[:, None, :]).any(2)
        token = torch.zeros(items_BC.shape, device=items_BC.device)
        if o.token_loss > 0:
            token = self.candidate_logp(items_BC, z_BTD, mask_BT)
        return items_BC, token, item_logp_BN.gather(1, items_BC), ~(twice | shown)


def _encode(layer: EncoderLayer, z_BTD: Tensor, mask: Tensor) -> Tensor:
    """An encoder layer under a mask of its own: the packed form, whose attention looks both ways, has none."""
    x_BTD = layer.norm_attn(z_BTD)
    z_BTD = z_BTD + layer.drop(layer.attn(x_BTD, layer.attn.project_kv(x_BTD), mask))
    return z_BTD + layer.drop(layer.ffn(layer.norm_ffn(z_BTD)))
