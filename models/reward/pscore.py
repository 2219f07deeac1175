"""P-Score: target-attention ranking backbone, a tower an objective, one score fitted to all labels (TR section 2.4.2).

The fusion tower reads the towers' hidden states (gradient stopped, as in Pantheon) with user and item representations.
The same score p is compared with every objective's label; hate counts as its absence.

Legend: B users, M candidates a user, S events, D width, O objectives, N items.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import read_fields
from models.onerec.features import GAP_BUCKETS, LABEL_STATES, LABELS, PLAY_BUCKETS
from models.training.checkpoint import Tokenizer, load_weights, save_weights

# w^xtr, all positive; hate's target is "not hated". Rare, strong signals weigh more than a click.
WEIGHTS = {
    "click": 0.5,
    "long_view": 1.0,
    "like": 1.0,
    "follow": 1.0,
    "comment": 1.0,
    "forward": 1.0,
    "hate": 1.0,
    "profile_enter": 0.5,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PScoreConfig:
    """Sizes of the reward model. `codebook_size` and `items` follow the tokenizer."""

    codebook_size: int
    items: int
    static_features: int
    static_buckets: int = 8192
    d_model: int = 32
    heads: int = 2
    tower_dim: int = 32


class PScore(nn.Module):
    """Scores (user, item) pairs. Item rows are embedded by their three codes plus a row of their own."""

    sid_NL: Tensor

    def __init__(self, config: PScoreConfig, sid_NL: Tensor) -> None:
        super().__init__()
        d, self.config = config.d_model, config
        unknown = torch.full((1, sid_NL.shape[1]), config.codebook_size)
        self.register_buffer("sid_NL", torch.cat([sid_NL.long(), unknown]))
        self.code = nn.ModuleList(nn.Embedding(config.codebook_size + 1, d) for _ in range(sid_NL.shape[1]))
        self.item_residual = nn.Embedding(config.items + 1, d)
        nn.init.zeros_(self.item_residual.weight)
        self.static = nn.Embedding(config.static_buckets, 8)
        self.static_proj = nn.Linear(8 * config.static_features, d)
        self.gap, self.play = nn.Embedding(GAP_BUCKETS, d), nn.Embedding(PLAY_BUCKETS, d)
        self.label = nn.Embedding(LABEL_STATES, d)
        self.q, self.kv = nn.Linear(d, d), nn.Linear(d, 2 * d)
        width = 3 * d
        self.tower = nn.ModuleList(nn.Sequential(nn.Linear(width, config.tower_dim), nn.LeakyReLU()) for _ in LABELS)
        self.tower_out = nn.ModuleList(nn.Linear(config.tower_dim, 1) for _ in LABELS)
        self.fusion = nn.Sequential(
            nn.Linear(len(LABELS) * config.tower_dim + width, 64), nn.LeakyReLU(), nn.Linear(64, 1)
        )

    def item_vector(self, index: Tensor) -> Tensor:
        codes = self.sid_NL[index]
        return sum(t(codes[..., i]) for i, t in enumerate(self.code)) + self.item_residual(index)

    def forward(self, batch: dict[str, Tensor], candidate_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the objectives [B, M, O] and of the P-Score [B, M] for candidates (catalogue indices)."""
        events = torch.cat([batch["short"], batch["positive"]], 1)
        mask = torch.cat([batch["short_mask"], batch["positive_mask"]], 1)
        item_BMD = self.item_vector(candidate_BM)
        h_BSD = (
            self.item_vector(events[..., 0])
            + self.gap(events[..., 3])
            + self.play(events[..., 4])
            + self.label(events[..., 6])
        )
        user_BMD = self.static_proj(self.static(batch["static"]).flatten(1))[:, None].expand_as(item_BMD)
        interest_BMD = self._target_attention(item_BMD, h_BSD, mask)
        x = torch.cat([item_BMD, user_BMD, interest_BMD], -1)
        hidden = [tower(x) for tower in self.tower]
        objectives = torch.cat([out(h) for out, h in zip(self.tower_out, hidden)], -1)
        fused = self.fusion(torch.cat([*(h.detach() for h in hidden), x], -1))
        return objectives, fused[..., 0]

    def _target_attention(self, item_BMD: Tensor, h_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Exact search unit: multi-head attention of each candidate over the user's events; zeros with no events."""
        B, M, D = item_BMD.shape
        H = self.config.heads
        q = self.q(item_BMD).view(B, M, H, D // H).transpose(1, 2)
        k, v = self.kv(h_BSD).view(B, h_BSD.shape[1], 2, H, D // H).permute(2, 0, 3, 1, 4)
        # A zero key and value in front keeps softmax defined for a user without history.
        k, v = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0))
        allowed = F.pad(mask_BS, (1, 0), value=True)[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).reshape(B, M, D)

    @torch.no_grad()
    def score(self, batch: dict[str, Tensor], candidate_BM: Tensor) -> Tensor:
        """P-Score in (0, 1), [B, M]."""
        return torch.sigmoid(self(batch, candidate_BM)[1])

    def save(self, out: Path) -> None:
        save_weights(self, out / "reward.safetensors")
        (out / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> PScore:
        """The reward model of a directory for this tokenizer; new items start from their codes alone.

        Raises ValueError for a configuration of another version and for a tokenizer it was not trained with.
        """
        config = PScoreConfig(**read_fields(directory / "config.json", PScoreConfig))
        items = len(tokenizer.catalogue)
        if config.codebook_size != tokenizer.codebook_size or items < config.items:
            raise ValueError(
                f"{directory} belongs to another tokenizer: the reward model was trained on {config.items} items x "
                f"{config.codebook_size} codes, this one has {items} x {tokenizer.codebook_size}; load one release"
            )
        state = load_weights(directory / "reward.safetensors", tokenizer, config.items)
        model = cls(dataclasses.replace(config, items=items), torch.from_numpy(tokenizer.sid_NL))
        state["sid_NL"] = model.sid_NL
        model.load_state_dict(state)
        return model


def targets_of(label_BM: Tensor, known_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Bit masks to targets and their availability, each [B, M, O] float. Hate is inverted: 1 means not hated."""
    bits = torch.arange(len(LABELS), device=label_BM.device)
    y = ((label_BM[..., None] >> bits) & 1).float()
    hate = LABELS.index("hate")
    y[..., hate] = 1 - y[..., hate]
    return y, ((known_BM[..., None] >> bits) & 1).float()


def p_score_loss(objectives: Tensor, fused: Tensor, y: Tensor, known: Tensor) -> Tensor:
    """One BCE an objective for its tower, plus the weighted sum of BCEs of the one score against all labels."""
    w = torch.tensor([WEIGHTS[name] for name in LABELS], device=y.device)
    total = known.sum((0, 1)).clamp_min(1)
    tower = (F.binary_cross_entropy_with_logits(objectives, y, reduction="none") * known).sum((0, 1)) / total
    score = fused[..., None].expand_as(y)
    shared = (F.binary_cross_entropy_with_logits(score, y, reduction="none") * known).sum((0, 1)) / total
    return tower.sum() + (w * shared).sum() / w.sum()
