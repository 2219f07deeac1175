"""SASRec with sampled softmax, the strongest published row: as in blondered/transformer_benchmark (arXiv 2508.06450).

    model = train_sasrec(SASRecConfig(), sequences, seed=1, device=torch.device("cuda"), progress=print)

One causal block in the order of SASRec's authors (the query alone is normalised and is what the residual adds to), one
head, learned positions counted from the newest event, every position predicts its next item against the same number of
uniform negatives, drawn anew for each position; dot products, constant learning rate 1e-3, Adam betas .9 and .98,
dropout .2, batch 128, at most 200 epochs, patience 50. Two habits of that code matter: dropout falls on the item table
itself, once a step, for history and scores alike; and padding is not masked but zero, so that a short history's
attention is spread thin. Kang and McAuley 2018 (arXiv 1808.09781) is the block's source.

Legend: B users, T events, D width, N items, R negatives, P positions that count.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.data import IGNORED, MAX_HISTORY, Batches, Sequences
from benchmarks.quality.protocol import Selection, autocast, rank_next
from benchmarks.quality.steps import Steps, adam

MOST_TARGETS = 2.0  # of a mixed batch, times the mean; a batch of 128 rows has never more (its deviation is a tenth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """The published choice for Beauty, Sports and Toys. negatives 0: the full softmax.

    `mixed`: batches of random rows, as published, their loss a mean over the batch's own targets, without autocast, and
    validation after every epoch; else batches of rows of like length and one divisor for all of them, which is faster.
    `with_validation`: the validation items are trained on too, for exactly `epochs`: what that would be worth, no row.
    """

    d_model: int = 256
    blocks: int = 1
    heads: int = 1
    dropout: float = 0.2
    negatives: int = 256
    batch: int = 128
    learning_rate: float = 1e-3
    epochs: int = 200
    patience: int = 50
    mixed: bool = False
    with_validation: bool = False


class Block(nn.Module):
    """Attention of the normalised query over the plain sequence, then a feed-forward of the same width."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        d, self.heads, self.dropout = config.d_model, config.heads, config.dropout
        self.norm_q, self.norm_ff = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.kv, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, d), nn.Linear(d, d)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Tensor) -> Tensor:
        """mask: what is added to the attention logits, broadcastable to [B, H, T, T]."""
        B, T, D = x_BTD.shape
        query = self.norm_q(x_BTD)
        q = self.q(query).view(B, T, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x_BTD).view(B, T, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.to(q.dtype), dropout_p=self.dropout if self.training else 0.0
        )
        x = self.norm_ff(query + self.out(y.transpose(1, 2).reshape(B, T, D)))
        return x + self.drop(self.down(self.drop(F.relu(self.up(x)))))


class SASRec(nn.Module):
    """Item N is the padding."""

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config, self.num_items = config, num_items
        self.item = nn.Embedding(num_items + 1, config.d_model)
        self.position = nn.Embedding(MAX_HISTORY, config.d_model)
        nn.init.xavier_normal_(self.item.weight)
        nn.init.xavier_normal_(self.position.weight)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        for parameter in self.blocks.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)
        self.norm = nn.LayerNorm(config.d_model)
        self.drop = nn.Dropout(config.dropout)

    def table(self) -> Tensor:
        """The item vectors [N + 1, D] of one step, dropout applied."""
        return self.drop(self.item.weight)

    def forward(self, items_BT: Tensor, table_ND: Tensor) -> Tensor:
        """Right-aligned histories to states [B, T, D]; state t has read the events up to t."""
        T, N = items_BT.shape[1], self.num_items
        places = torch.arange(T - 1, -1, -1, device=items_BT.device)
        x = F.pad(self.drop(table_ND[items_BT] + self.position(places)), (0, 0, 1, 0))
        real_BS1 = F.pad(items_BT < N, (1, 0))[..., None]
        mask = self.zero_padding(items_BT)
        for block in self.blocks:
            x = block(x * real_BS1, mask)
        return self.norm(x)[:, 1:]

    def zero_padding(self, items_BT: Tensor) -> Tensor:
        """Attention bias [B, 1, 1 + T, 1 + T] of a causal history behind MAX_HISTORY - length zero vectors.

        Equal zeros are one key with the logarithm of their number added, so rows need not be padded to full length.
        """
        real_BT, T = items_BT < self.num_items, items_BT.shape[1]
        zeros_B = (MAX_HISTORY - real_BT.sum(1)).clamp_min(0).float().log()
        causal = torch.ones(T + 1, T + 1, dtype=torch.bool, device=items_BT.device).tril()
        seen = F.pad(real_BT, (1, 0), value=True)[:, None, :] & causal
        bias = torch.zeros(seen.shape, device=items_BT.device).masked_fill(~seen, float("-inf"))
        bias[:, :, 0] = zeros_B[:, None]
        bias.diagonal(dim1=1, dim2=2).zero_()
        bias[:, 1:, 0] = zeros_B[:, None]
        return bias[:, None]

    def scores(self, items_BT: Tensor) -> Tensor:
        """[B, N] for the event after the newest."""
        table = self.table()
        return F.linear(self.forward(items_BT, table)[:, -1].float(), table[:-1].float())


def sampled_softmax(state_PD: Tensor, target_P: Tensor, table_ND: Tensor, negatives: int) -> Tensor:
    """Summed cross-entropy of targets against `negatives` uniform draws of each position; 0: against all items [N].

    A target of IGNORED counts nothing. A draw that is the target itself is left in, as in the published code: it costs
    a constant at most.
    """
    state_PD, table_ND = state_PD.float(), table_ND.float()
    with torch.autocast(state_PD.device.type, enabled=False):
        return _contrast(state_PD, target_P, table_ND, negatives)


def _contrast(state_PD: Tensor, target_P: Tensor, table_ND: Tensor, negatives: int) -> Tensor:
    if not negatives:
        return F.cross_entropy(F.linear(state_PD, table_ND), target_P, reduction="sum", ignore_index=IGNORED)
    drawn_PR = torch.randint(len(table_ND), (len(target_P), negatives), device=state_PD.device)
    item_P1 = target_P[:, None].clamp_min(0)
    if state_PD.is_cuda or len(table_ND) < 8 * negatives:
        logits_PN = F.linear(state_PD, table_ND)  # one dense product is faster than gathering P x R rows
        negative_PR = logits_PN.gather(1, drawn_PR)
        positive_P1 = logits_PN.gather(1, item_P1)
    else:
        negative_PR = torch.einsum("pd,prd->pr", state_PD, F.embedding(drawn_PR, table_ND))
        positive_P1 = (state_PD * F.embedding(item_P1[:, 0], table_ND)).sum(1, keepdim=True)
    logits = torch.cat([positive_P1, negative_PR], 1)
    first_P = torch.where(target_P == IGNORED, IGNORED, 0)
    return F.cross_entropy(logits, first_P, reduction="sum", ignore_index=IGNORED)


def train_sasrec(
    config: SASRecConfig,
    sequences: Sequences,
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[str], None] = print,
    seconds: float = float("inf"),
) -> tuple[SASRec, Selection]:
    """Fit on the training items; the epoch with the best validation NDCG@10 is kept."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SASRec(config, sequences.num_items).to(device)
    optimizer = adam(model.parameters(), rate=config.learning_rate, weight_decay=0.0, decoupled=False, device=device)
    known = sequences.held_out("test")[0] if config.with_validation else sequences.training()
    data = Batches([r for r in known if len(r) > 1], sequences.num_items, device)
    targets = data.targets(config.batch)
    most = int(MOST_TARGETS * targets)

    def step(rows_BT: Tensor) -> None:
        items_BT, next_BT = rows_BT[:, :-1], rows_BT[:, 1:]
        target_P = torch.where(items_BT < sequences.num_items, next_BT, IGNORED).flatten()
        with contextlib.nullcontext() if config.mixed else autocast(device):
            table = model.table()
            state_PD = model(items_BT, table)[:, -items_BT.shape[1] :].flatten(0, 1)
            if config.mixed:  # most places are padding: go on with as many as `most` targets
                kept_P = (target_P != IGNORED).float().topk(min(most, len(target_P))).indices
                state_PD, target_P = state_PD[kept_P], target_P[kept_P]
            loss = sampled_softmax(state_PD, target_P, table[:-1], config.negatives)
            loss = loss / ((target_P != IGNORED).sum().clamp_min(1) if config.mixed else targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    run = Steps(step, device)
    every = 1 if config.mixed else 5
    selection = Selection(model, patience=config.patience, seconds=seconds, progress=progress, every=every)
    for epoch in range(config.epochs):
        model.train()
        for rows_BT in (data.mixed_epoch if config.mixed else data.epoch)(config.batch, rng):
            run(rows_BT)
        if selection.due(epoch) if not config.with_validation else epoch + 1 == config.epochs:
            validation = rank_next(model.eval().scores, sequences, "validation", device)
            if selection.stop(epoch, validation):
                break
    model.load_state_dict(selection.best_state)
    return model, selection
