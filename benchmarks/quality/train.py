"""Training and ranking of `SequenceOneRec`.

    model, selection = train_onerec(OneRecSequences(), Training(), sequences, sid_NL, content_NF, seed=1, ...)
    by_weights = rank_onerec(model, sequences, "validation", device)

Every position of every user is a target, once an epoch. AdamW, warm-up and cosine to a tenth; the epoch with the best
validation NDCG@10 of the joint score is kept.

Legend: B users, T events, P targets, N items, L=3 levels, C candidates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.data import IGNORED, MAX_HISTORY, Batches, Sequences
from benchmarks.quality.follows import Follows
from benchmarks.quality.onerec import OneRecSequences, SequenceOneRec
from benchmarks.quality.protocol import PLACES, Selection, autocast
from benchmarks.quality.sasrec import sampled_softmax
from benchmarks.quality.steps import Steps, adam, set_rate
from models.evaluation.metrics import next_item_metrics
from models.tokenizer.trie import Trie

Weights = tuple[float, float]  # of the item-level score (inf: without the beam's) and of co-occurrence
CO_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
GRID: tuple[Weights, ...] = tuple((item, co) for item in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf) for co in CO_WEIGHTS)
CANDIDATES = 64  # of the beam and of the item-level head each; ten are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """`seconds` ends a training early; the learning rate follows epochs or seconds, whichever is further. One
    epoch in `every` is validated."""

    epochs: int = 60
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    patience: int = 20
    every: int = 5
    seconds: float = float("inf")
    select: Weights = (1.0, 0.0)


def losses(model: SequenceOneRec, rows_BT: Tensor) -> Tensor:
    """Next-token loss of every position's target plus the item-level head's, weighted; summed over targets."""
    o, items = model.options, model.config.items
    items_BT, next_BT = rows_BT[:, :-1], rows_BT[:, 1:]
    table_ND = model.table()
    z_BSD, mask_BS = model.context(items_BT, table_ND)
    z_BTD = z_BSD[:, 1:]
    if not o.causal:  # a window trains its last position only
        items_BT, next_BT, z_BTD = items_BT[:, -1:], next_BT[:, -1:], z_BTD[:, -1:]
    counts_P = (items_BT < items).flatten()  # else there is no event before the target; shapes never depend on it
    target_P = torch.where(counts_P, next_BT.flatten(), IGNORED)
    total = z_BSD.new_zeros(())
    if o.item_loss > 0:
        state_PD = model.item_states(z_BTD).flatten(0, 1)
        total = total + o.item_loss * sampled_softmax(state_PD, target_P, table_ND[:-1], o.negatives)
    if o.token_loss > 0:
        codes_BTL = model.sid_NL[next_BT].clamp_max(model.config.codebook_size - 1)
        if o.causal:
            hidden_BTLD = model.token_states(codes_BTL, z_BSD, mask_BS)
        else:
            hidden_BTLD = model.decode(codes_BTL[..., :-1], model.context_kv(z_BSD), mask_BS)
        code_PL = torch.where(counts_P[:, None], codes_BTL.flatten(0, 1), IGNORED)
        item_P = target_P.clamp_min(0)
        for level in range(model.config.levels):
            logp = model.level_logp(hidden_BTLD[:, :, level].flatten(0, 1), level, item_P)
            nll = F.nll_loss(logp, code_PL[:, level], reduction="sum", ignore_index=IGNORED)
            if o.smoothing:
                share_PK = model.siblings()[level][item_P] * counts_P[:, None]
                spread = -torch.where(share_PK > 0, logp * share_PK, 0.0).sum()
                nll = (1 - o.smoothing) * nll + o.smoothing * spread
            total = total + o.token_loss * nll
    return total


def rate(done: float, warmup: float) -> float:
    """Share of the learning rate at a point 0..1 of the training: linear warm-up, then cosine to a tenth."""
    if done < warmup:
        return max(done / warmup, 0.01)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def windows(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Every prefix of at least two items: the sliding windows of TIGER and GRID."""
    return [row[:end] for row in rows for end in range(2, len(row) + 1)]


def train_onerec(
    options: OneRecSequences,
    training: Training,
    sequences: Sequences,
    sid_NL: np.ndarray,
    content_NF: np.ndarray,
    codebook_size: int,
    *,
    seed: int,
    device: torch.device,
    trie: Trie | None = None,
    progress: Callable[[str], None] = print,
) -> tuple[SequenceOneRec, Selection]:
    """Fit on the training items; returns the model of the best validation epoch. `trie` as in SequenceOneRec."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SequenceOneRec(options, sid_NL, content_NF, codebook_size, trie).to(device)
    rows = sequences.training() if options.causal else windows(sequences.training())
    data = Batches([r for r in rows if len(r) > 1], sequences.num_items, device)
    optimizer = adam(
        model.parameters(),
        rate=training.learning_rate,
        weight_decay=training.weight_decay,
        decoupled=True,
        device=device,
    )
    targets = data.targets(training.batch) if options.causal else float(training.batch)

    def step(rows_BT: Tensor) -> None:
        with autocast(device):
            loss = losses(model, rows_BT) / targets
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    run = Steps(step, device)
    steps = training.epochs * math.ceil(len(data.length_U) / training.batch)
    selection = Selection(
        model, patience=training.patience, seconds=training.seconds, progress=progress, every=training.every
    )
    done = 0
    for epoch in range(training.epochs):
        model.train()
        for rows_BT in data.epoch(training.batch, rng):
            share = max(done / steps, selection.spent / training.seconds)
            set_rate(optimizer, training.learning_rate * rate(share, training.warmup))
            run(rows_BT)
            done += 1
        if selection.due(epoch):
            found = rank_onerec(model, sequences, "validation", device, weights=(training.select,))
            if selection.stop(epoch, found[training.select]):
                break
    model.load_state_dict(selection.best_state)
    return model, selection


@torch.no_grad()
def rank_onerec(
    model: SequenceOneRec,
    sequences: Sequences,
    part: str,
    device: torch.device,
    weights: tuple[Weights, ...] = GRID,
    batch: int = 512,
) -> dict[Weights, dict[str, np.ndarray]]:
    """Per-user metrics [U] for each pair of weights: beam + item weight x item-level score + co x log co-occurrence."""
    model.eval()
    follows = Follows(sequences, device) if any(co for _, co in weights) else None
    history, target = sequences.held_out(part)
    ranked = {w: np.full((sequences.users, PLACES), -1, np.int64) for w in weights}
    for users, items_BT in Batches(history, sequences.num_items, device, MAX_HISTORY).in_order(batch):
        items_BC, token_BC, item_BC, real_BC = model.candidates(items_BT, min(CANDIDATES, sequences.num_items))
        co_BC = follows.log_score(items_BT, items_BC) if follows else torch.zeros_like(item_BC)
        for w in weights:
            score = (item_BC if w[0] == math.inf else token_BC + w[0] * item_BC) + w[1] * co_BC
            best = score.masked_fill(~real_BC, float("-inf")).topk(min(PLACES, score.shape[1]), dim=1)
            item = items_BC.gather(1, best.indices).masked_fill(best.values == float("-inf"), -1)
            ranked[w][users, : item.shape[1]] = item.cpu().numpy()
    return {w: next_item_metrics(r, target) for w, r in ranked.items()}
