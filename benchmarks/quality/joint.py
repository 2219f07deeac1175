"""KuaiRand: the joint score with co-occurrence, as on Amazon: beam + item head + EASE of everything that was shown.

    weights = shown_weights(up_to(prepared, day), tokenizer.catalogue)         # items by items
    scored = candidates(ranker, seen, weights)
    scored.rank((1.0, 12.0))                                                   # lists [U, TOP] of item ids

What two users were both shown says which items a user will meet next, whatever they liked of it: the closed form sees
all of a history at once and remembers single pairs of items, which a small network does not. A beam proposes, and so
does the item head with co-occurrence; each candidate then gets all three scores. The closed form of 7,583 items took
54 to 72 s on one busy CPU core.

Legend: U users, B users of a chunk, N items, C candidates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
from torch import Tensor

from benchmarks.quality.kuairand import LAMBDA_SHOWN, ease
from benchmarks.quality.lists import TOP
from models.evaluation.evaluate import BEAM, CHUNK, Ranker
from models.evaluation.metrics import ranking_metrics
from models.onerec.beam_search import beam_search
from models.onerec.features import Catalogue
from models.onerec.model import OneRec
from models.training.data import read_ragged

PROPOSE = 12.0  # weight of co-occurrence beside the item head where candidates are proposed
GRID = tuple((item, shown) for item in (1.0, 2.0, 4.0) for shown in (0.0, 6.0, 12.0, 24.0, 48.0))
OWN = tuple((item, 0.0) for item in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0))  # the model's own two heads, without co-occurrence


def shown_weights(training_sets: list[Path], catalogue: Catalogue, regulariser: float = LAMBDA_SHOWN) -> np.ndarray:
    """EASE's item-item weights [N, N] of everything that users were shown."""
    user, item = [], []
    for path in training_sets:
        table = pq.read_table(path, columns=["user_id", "item_id"])
        shown = read_ragged(table, ["item_id"])
        user.append(np.repeat(table["user_id"].to_numpy(), shown.lengths))
        item.append(catalogue.index(shown.values))
    users, row = np.unique(np.concatenate(user), return_inverse=True)
    return ease(_matrix(row, np.concatenate(item), len(users), len(catalogue)), regulariser)


def seen_matrix(seen: list[np.ndarray], catalogue: Catalogue) -> sp.csr_matrix:
    """Which items each user was shown [U, N]."""
    row = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
    return _matrix(row, catalogue.index(np.concatenate(seen)), len(seen), len(catalogue))


def _matrix(row: np.ndarray, item: np.ndarray, rows: int, items: int) -> sp.csr_matrix:
    known = item < items
    made = sp.csr_matrix((np.ones(known.sum(), np.float32), (row[known], item[known])), shape=(rows, items))
    made.data[:] = 1
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Candidates of each user [U, C] as item ids, -1 where none, and their three scores: codes, item head, shown."""

    item_UC: np.ndarray
    codes_UC: np.ndarray
    head_UC: np.ndarray
    shown_UC: np.ndarray

    def rank(self, weights: tuple[float, float]) -> np.ndarray:
        """The TOP candidates [U, TOP] by codes + weights[0] * item head + weights[1] * shown."""
        score = self.codes_UC + weights[0] * self.head_UC + weights[1] * self.shown_UC
        order = np.argsort(-np.where(self.item_UC >= 0, score, -np.inf), axis=1, kind="stable")[:, :TOP]
        ranked = np.take_along_axis(self.item_UC, order, 1)
        return np.pad(ranked, ((0, 0), (0, TOP - ranked.shape[1])), constant_values=-1)

    def best_weights(
        self, wanted: list[np.ndarray], grid: tuple[tuple[float, float], ...] = GRID
    ) -> tuple[tuple[float, float], float]:
        """Of a grid, the weights with the best recall@50, and that."""
        found = [float(ranking_metrics(self.rank(w), wanted)["recall@50"].mean()) for w in grid]
        return grid[int(np.argmax(found))], max(found)


@torch.no_grad()
def candidates(ranker: Ranker, seen: list[np.ndarray], weights_NN: np.ndarray, width: int = BEAM) -> Scored:
    """What the beam proposes and as much again by item head and co-occurrence, nothing seen, each item once."""
    model, catalogue, parts = ranker.model, ranker.tok.catalogue, []
    trie = ranker.tok.trie.to(ranker.device)
    width = min(width, len(catalogue))
    for start in range(0, len(ranker.rows), CHUNK):
        context = {k: t.to(ranker.device) for k, t in ranker.data.context(ranker.rows[start : start + CHUNK]).items()}
        seen_BN = seen_matrix(seen[start : start + CHUNK], catalogue)
        shown_BN = torch.from_numpy(np.asarray(seen_BN @ weights_NN, np.float32)).to(ranker.device)
        skip_BN = torch.from_numpy(seen_BN.toarray() > 0).to(ranker.device)
        z, mask = model.encode(context)
        head_BN = torch.log_softmax(model.item_logits(z).float(), -1)
        both_BN = (head_BN + PROPOSE * shown_BN).masked_fill(skip_BN, float("-inf"))
        beam_BW = trie.lookup(beam_search(model, z, mask, width, trie)[0]).clamp_min(0)
        item_BC = torch.cat([beam_BW, both_BN.topk(width, dim=1).indices], 1).sort(1).values
        none = skip_BN.gather(1, item_BC)
        none[:, 1:] |= item_BC[:, 1:] == item_BC[:, :-1]
        scores = (token_logp(model, item_BC, z, mask), head_BN.gather(1, item_BC), shown_BN.gather(1, item_BC))
        ids = np.where(none.cpu().numpy(), -1, catalogue.item_ids[item_BC.cpu().numpy()])
        parts.append([ids, *(s.float().cpu().numpy() for s in scores)])
    item, codes, head, shown = (np.concatenate(p) for p in zip(*parts))
    return Scored(item_UC=item, codes_UC=codes, head_UC=head, shown_UC=shown)


def token_logp(model: OneRec, item_BC: Tensor, z_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Log-probability [B, C] of the codes of given items."""
    codes_BCL = model.sid_NL[item_BC]
    hidden = model.decode(codes_BCL[..., :-1], model.context_kv(z_BTD), mask_BT)
    total = torch.zeros(item_BC.shape, device=item_BC.device)
    for level in range(model.config.levels):
        logp = torch.log_softmax(model.level_logits(hidden[:, :, level], level).float(), -1)
        total = total + logp.gather(2, codes_BCL[..., level, None])[..., 0]
    return total
