"""The session-wise reward of OneRec V1 (arXiv 2502.18965, section 3.3): R(u, S) of a list of m items at once.

    python -m models.reward.session --training-sets DIR/part-0.parquet --tokenizer TOK --reward REWARD --out REWARD

Each item of the list is made target-aware (e_i, by P-Score's backbone and its attention over the user's history), the
items attend to each other, their sum feeds four towers: swt (the session was watched for longer than the median one),
vtr (share of long views), wtr (a follow), ltr (a like). BCE a target. A session is m impressions of a user, one after
the other. V1 does not say how the four become one score: here it is the mean of their probabilities.

As a `Reward` it takes items in lists of m, one list after the other, and gives every item its list's value.

Legend: B users, S lists a user, m items a list, G = S * m, X width of P-Score's backbone, D width, T=4 targets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.onerec.features import LABELS
from models.reward.pscore import PScore
from models.reward.reward import Reward, RewardInput, RewardSetup
from models.training.checkpoint import Tokenizer
from models.training.data import TrainingSet

TARGETS = ("swt", "vtr", "wtr", "ltr")
SESSION_ITEMS = 5  # published
FILE, ABOUT = "session.safetensors", "session.json"
BATCH, EPOCHS, LEARNING_RATE = 128, 3, 1e-3
PLAY_MS = 3  # field of a shown impression; 1 and 2 are its labels and which of them are known


class SessionReward(nn.Module):
    """Logits of the four targets of lists; `backbone` starts as the day's P-Score and is trained along."""

    def __init__(self, backbone: PScore, session_items: int = SESSION_ITEMS, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        if session_items < 2:
            raise ValueError(f"session_items is {session_items}; a session has at least two items (5 published)")
        self.backbone, self.session_items = backbone, session_items
        self.item = nn.Linear(backbone.tower.in_features, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1)) for _ in TARGETS)

    def forward(self, context: dict[str, Tensor], item_BSm: Tensor) -> Tensor:
        """[B, S, m] catalogue indices -> logits [B, S, 4]."""
        B, S, m = item_BSm.shape
        x_BGX = self.backbone.represent(context, item_BSm.flatten(1))[1]
        e = self.item(x_BGX).view(B * S, m, -1)
        h = self.norm(e + self.attention(e, e, e, need_weights=False)[0]).sum(1)
        return torch.cat([tower(h) for tower in self.towers], -1).view(B, S, len(TARGETS))

    @torch.no_grad()
    def score(self, context: dict[str, Tensor], item_BSm: Tensor) -> Tensor:
        """One value a list, in (0, 1), [B, S]."""
        return torch.sigmoid(self(context, item_BSm)).mean(-1)

    def save(self, out: Path) -> None:
        """Beside the P-Score of the same directory."""
        state = {k: v.contiguous().cpu() for k, v in self.state_dict().items() if k != "backbone.sid_NL"}
        save_file(state, out / FILE)
        (out / ABOUT).write_text(json.dumps({"session_items": self.session_items}) + "\n")

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> SessionReward:
        """Raises ValueError when the directory holds none, or one of another tokenizer than its P-Score's."""
        if not (directory / FILE).exists():
            raise ValueError(f"{directory} holds no {FILE}; train one with python -m models.reward.session")
        backbone = PScore.load(directory, tokenizer)
        model = cls(backbone, json.loads((directory / ABOUT).read_text())["session_items"])
        state = load_file(directory / FILE) | {"backbone.sid_NL": backbone.sid_NL}
        if (rows := len(state["backbone.item_residual.weight"])) != len(backbone.item_residual.weight):
            raise ValueError(
                f"{directory / FILE} knows {rows - 1} items, the tokenizer {len(tokenizer.catalogue)}; train it again"
            )
        model.load_state_dict(state)
        return model


def session(setup: RewardSetup) -> Reward:
    """The registered reward: every item gets the value of its list of m; G must be a multiple of m."""
    model = SessionReward.load(setup.reward, setup.tokenizer).to(setup.device).eval()
    m = model.session_items

    def value(generated: RewardInput) -> Tensor:
        if generated.item_BG.shape[1] % m:
            raise ValueError(
                f"{generated.item_BG.shape[1]} items are no lists of {m}; set rollout.session_items to {m}, or reward "
                "single items by p_score"
            )
        lists = generated.item_BG.clamp_min(0).unflatten(1, (-1, m))
        return model.score(generated.context, lists).repeat_interleave(m, 1)

    return value


def sessions_of(data: TrainingSet, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of m impressions of a row, end to end: rows [n], items [n, m] and targets [n, 4] as floats.

    Runs with an item that the catalogue lacks or a label that is not known are left out.
    """
    used = [1 << LABELS.index(name) for name in ("long_view", "follow", "like")]
    rows, at = [], []
    for row in np.flatnonzero(data.shown.lengths >= m):
        starts = np.arange(data.shown.offsets[row], data.shown.offsets[row + 1] - m + 1, m)
        rows.append(np.full(len(starts), row))
        at.append(starts[:, None] + np.arange(m))
    if not rows:
        return np.empty(0, np.int64), np.empty((0, m), np.int64), np.empty((0, len(TARGETS)))
    shown = data.shown.values[np.concatenate(at)]
    known = ((shown[..., 2] & sum(used)) == sum(used)) & (shown[..., 0] < len(data.catalogue))
    keep = known.all(1)
    row, shown = np.concatenate(rows)[keep], shown[keep]
    watched = np.maximum(shown[..., PLAY_MS], 0).sum(1)
    has = (shown[..., 1, None] & np.array(used)) > 0
    long_view, follow, like = np.moveaxis(has, -1, 0)
    middle = np.median(watched) if len(watched) else 0
    return row, shown[..., 0], np.stack([watched > middle, long_view.mean(1), follow.any(1), like.any(1)], 1)


def train_session(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    reward: Path,
    out: Path,
    seed: int,
    session_items: int = SESSION_ITEMS,
    progress: Callable[[str], None] = print,
) -> dict:
    """Train on the sessions of some days, starting from the P-Score in `reward`; writes into `out`.

    Returns the sessions' number and each target's first and last BCE. Raises ValueError without sessions.
    """
    from models.reward.train import labelled

    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    data = labelled(training_sets, tok)
    row_n, item_nm, y_nT = sessions_of(data, session_items)
    if not len(row_n):
        raise ValueError(f"no user was shown {session_items} known items in a row: there are no sessions to learn from")
    model = SessionReward(PScore.load(reward, tok), session_items).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    rng, losses = np.random.default_rng(seed), []
    for epoch in range(EPOCHS):
        for part in np.array_split(rng.permutation(len(row_n)), -(-len(row_n) // BATCH)):
            items = torch.from_numpy(item_nm[part])[:, None]
            y = torch.from_numpy(y_nT[part]).float()
            logit = model(data.context(row_n[part]), items)[:, 0]
            bce = F.binary_cross_entropy_with_logits(logit, y, reduction="none").mean(0)
            optimizer.zero_grad(set_to_none=True)
            bce.sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(bce.detach())
        progress(f"epoch {epoch + 1}/{EPOCHS}  loss {losses[-1].sum().item():.3f}")
    model.save(out)
    tenth = max(1, len(losses) // 10)
    first, last = (torch.stack(part).mean(0).tolist() for part in (losses[:tenth], losses[-tenth:]))
    return {"sessions": len(row_n), "first": dict(zip(TARGETS, first)), "last": dict(zip(TARGETS, last))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train V1's session-wise reward model beside a P-Score.")
    parser.add_argument("--training-sets", type=Path, nargs="+", required=True, help="training rows, a file a day")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--reward", type=Path, required=True, help="directory of the day's P-Score")
    parser.add_argument("--out", type=Path, required=True, help="where session.safetensors goes")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(train_session(**vars(parser.parse_args())), indent=1))
