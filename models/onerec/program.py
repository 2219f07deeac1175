"""A whole request as one module of fixed shapes: context, three decode steps under the trie, top-K, item ids.

    program = ServingProgram(model, trie, item_ids, width=512)
    items_BW, scores_BW, sids_BWL = program(*(inputs[name] for name in INPUTS))

It computes what `rank_items` computes, in a form that torch.export, AOTInductor and CUDA graphs take: no shape and no
branch depends on data, nothing waits for the device. Padding is computed and masked, the context's keys and values are
read by all beams as so many queries of one attention, and BOS is one token a user. A request with a narrower beam is
the same program: ranks beyond its beam are put out after every step, which is the narrower search itself.

Legend: B users, W beam width, M beams before a step (1, then W), C largest number of children, L=3 levels, K codebook
size, T context tokens, N items, S static features.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.beam_search import ILLEGAL, follow_cache
from models.onerec.config import OneRecConfig
from models.onerec.features import NUM_FIELDS
from models.onerec.kernels import LONGEST_ROW
from models.onerec.layers import Cache
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.onerec.pathways import HISTORIES
from models.onerec.ranking import ITEM_SCORE_WEIGHT
from models.tokenizer.trie import Trie

INPUTS = ("static", *HISTORIES, "lengths", "beam")
NOTHING = -1  # item id and codes of a surplus entry

Context = tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]  # keys and values of each layer, mask [B, T], z_0 [B, D]
Beams = tuple[Tensor | None, Tensor, Tensor, "list[Cache] | None"]  # last code, logp, trie node, each [B, M]; cache


def input_shapes(config: OneRecConfig) -> dict[str, list[int]]:
    """Shape of one user's row of each input; all are int32. Histories are right-aligned, `lengths` says how many."""
    c = config
    lengths = {"short": c.short_len, "positive": c.positive_len, "lifelong": c.lifelong_len}
    rows = {name: [lengths[name], NUM_FIELDS] for name in HISTORIES}
    return {"static": [c.static_features], **rows, "lengths": [len(HISTORIES)], "beam": []}


class ServingProgram(nn.Module):
    """The request of point-wise models. In half precision (`dtype`) the router's choice, scores and log-probabilities
    stay in float32.

    Raises ValueError for a model that generates lists: its search excludes items between steps.
    """

    def __init__(
        self, model: OneRec, trie: Trie, item_ids: Tensor, width: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        c = model.config
        if c.session_items > 1:
            raise ValueError(
                f"the model generates lists of {c.session_items} items; only point-wise models (session_items 1) are"
                " exported, serve this one eagerly through recommend_list"
            )
        self.model, self.width, self.widest = model.eval(), width, trie.max_children
        self.codebook_size = trie.codebook_size
        for level in range(c.levels):
            self.register_buffer(f"first_{level}", trie.first[level])
        codes = [*trie.code, (trie.key % trie.codebook_size).to(trie.code[0].dtype)]
        for level, code in enumerate(codes):
            self.register_buffer(f"code_{level}", code)
        self.register_buffer("key_N", trie.key)
        self.register_buffer("index_N", trie.item)
        self.register_buffer("id_N", item_ids[trie.item.long()])
        with torch.no_grad():
            if c.item_head:
                self.register_buffer("table_ND", model.item_table())
            if dtype != torch.float32:
                biases = [(m, m.bias_E) for m in model.modules() if isinstance(m, MoE)]
                self.to(dtype)
                for moe, bias_E in biases:  # its steps are finer than a half precision's
                    moe.bias_E = bias_E

    def at_width(self, width: int) -> ServingProgram:
        """The same program with another beam width; weights and trie are shared."""
        twin = copy.copy(self)
        twin.width = width
        return twin

    def forward(
        self, static: Tensor, short: Tensor, positive: Tensor, lifelong: Tensor, lengths: Tensor, beam: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs int32 as of `input_shapes`, batch first. Returns ids [B, W] int64, scores [B, W] float32, best first,
        and codes [B, W, L] int32; an entry beyond the beam or the legal items is -1, -inf, -1."""
        context = self.context(static, short, positive, lifelong, lengths)
        beams: Beams = self.start(context)
        for level in range(self.model.config.levels):
            beams = self.choose(level, *self.decode(level, context, beams), beams, beam)
        return self.finish(context, beams)

    def context(self, static: Tensor, short: Tensor, positive: Tensor, lifelong: Tensor, lengths: Tensor) -> Context:
        """Everything that is read once a request."""
        batch = {"static": static.long()}
        for i, (name, events) in enumerate(zip(HISTORIES, (short, positive, lifelong))):
            place = torch.arange(events.shape[1], device=events.device)
            batch[name], batch[f"{name}_mask"] = events.long(), place >= events.shape[1] - lengths[:, i : i + 1]
        z_BTC, mask_BT = self.model.encode(batch, packs=False)
        return self.model.context_kv(z_BTC), cast(Tensor, mask_BT), z_BTC[:, 0]

    def start(self, context: Context) -> Beams:
        B, device = context[1].shape[0], context[1].device
        root = torch.zeros(B, 1, dtype=torch.int64, device=device)
        return None, torch.zeros(B, 1, device=device), root, None

    def decode(self, level: int, context: Context, beams: Beams) -> tuple[Tensor, list[Cache]]:
        """Logits [B, M, K] of the next code of every beam, and the grown cache."""
        hidden, cache = self.model.decode_step(beams[0], level, beams[3], context[0], context[1])
        return self.model.level_logits(hidden, level), cache

    def choose(self, level: int, logits_BMK: Tensor, cache: list[Cache], beams: Beams, beam_B: Tensor) -> Beams:
        """The W best legal continuations of each user's beams."""
        _, logp_BM, node_BM, _ = beams
        M, C, W = node_BM.shape[1], self.widest[level], self.width
        first, code_of = self.get_buffer(f"first_{level}"), self.get_buffer(f"code_{level}")
        child_BMC = first[node_BM].long()[..., None] + torch.arange(C, device=node_BM.device)
        real_BMC = child_BMC < first[node_BM + 1].long()[..., None]
        child_BMC = child_BMC.clamp_max(code_of.shape[0] - 1)
        code_BMC = code_of[child_BMC].long()
        logp_BMC = logits_BMK.gather(2, code_BMC).float() + (logp_BM - log_sum_exp(logits_BMK))[..., None]
        total = logp_BMC.masked_fill(~real_BMC, ILLEGAL).flatten(1)
        if M * C < W:
            total = F.pad(total, (0, W - M * C), value=ILLEGAL)
        logp_BW, best_BW = total.topk(W, dim=1)
        rank_W = torch.arange(W, device=total.device)
        logp_BW = logp_BW.masked_fill(rank_W >= beam_B[:, None], ILLEGAL)
        best_BW = best_BW.clamp_max(M * C - 1)
        # Of the few that are kept, computed again: to gather from code_BMC and child_BMC, both would be written first.
        kept_BW = best_BW // C
        child_BW = first[node_BM.gather(1, kept_BW)].long() + best_BW % C
        child_BW = child_BW.clamp_max(code_of.shape[0] - 1)
        if level < self.model.config.levels - 1:
            cache = follow_cache(cache, kept_BW)
        return code_of[child_BW].long(), logp_BW, child_BW, cache

    def finish(self, context: Context, beams: Beams) -> tuple[Tensor, Tensor, Tensor]:
        """Items of the leaves, in the order of their scores."""
        _, score_BW, leaf_BW, _ = beams
        if self.model.config.item_head:
            query_BD = self.model.item_query(context[2])
            logits_BN = F.linear(query_BD, self.get_buffer("table_ND"), self.model.item_bias_N).float()
            index_BW = self.get_buffer("index_N")[leaf_BW].long()
            item_logp = logits_BN.gather(1, index_BW) - log_sum_exp(logits_BN)[:, None]
            score_BW, order = (score_BW + ITEM_SCORE_WEIGHT * item_logp).sort(dim=1, descending=True, stable=True)
            leaf_BW = leaf_BW.gather(1, order)
        none_BW = score_BW == ILLEGAL
        key_BW, K = self.get_buffer("key_N")[leaf_BW], self.codebook_size
        sid_BWL = torch.stack([key_BW // K**i % K for i in reversed(range(self.model.config.levels))], -1)
        ids_BW = self.get_buffer("id_N")[leaf_BW].masked_fill(none_BW, NOTHING)
        return ids_BW, score_BW, sid_BWL.int().masked_fill(none_BW[..., None], NOTHING)


def log_sum_exp(x: Tensor) -> Tensor:
    """[..., K] -> [...] in float32. Spelled out: a compiler reads x twice, torch.logsumexp it calls as it is, which
    writes three float32 copies of all logits (3 of 54 ms at 64 users and 512 beams)."""
    K = x.shape[-1]
    if x.is_cuda and not torch.is_grad_enabled() and K & (K - 1) == 0 and K <= LONGEST_ROW:
        from models.onerec import inference_kernels  # needs Triton, which comes with PyTorch for CUDA

        return inference_kernels.row_log_sum_exp(x.flatten(0, -2)).view(x.shape[:-1])
    largest = x.float().amax(-1, keepdim=True)
    return (x.float() - largest).exp().sum(-1).log() + largest[..., 0]
