"""P-Score: a SIM ranking backbone, a tower an objective, one score fitted to all labels (TR section 2.4.2).

    towers_BMO, score_BM = model(batch, candidate_BM)      # logits
    model.score(batch, candidate_BM)                       # P-Score in (0, 1), what alignment and serving use

The backbone reads [item, user, exact search over the long history, attention over the short one]. The fusion tower
reads the towers' hidden states (gradient stopped, as in Pantheon) with the same representation. The same score p is
compared with every objective's label; hate counts as its absence. How labels and losses work: losses.py.

Legend: B users, M candidates a user, S events, D width, O objectives, T tower width, N items.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import read_fields
from models.onerec.features import GAP_BUCKETS, LABEL_STATES, LABELS, PLAY_BUCKETS
from models.reward.search import GAP, ExactSearch, SoftSearch, hard_search, long_history, top_relevant
from models.training.checkpoint import Tokenizer, restore, save_weights

SEARCHES = ("hard", "soft")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PScoreConfig:
    """Sizes and choices of the reward model. `codebook_size` and `items` follow the tokenizer.

    `search`: hard (same category) or soft (learned inner product); `search_k` events of the long history are attended.
    `stop_gradient`: whether the one score's gradient ends at the towers' hidden states.
    """

    codebook_size: int
    items: int
    static_features: int
    static_buckets: int = 8192
    d_model: int = 32
    heads: int = 2
    tower_dim: int = 32
    gap_dim: int = 8
    search: str = "hard"
    search_k: int = 16
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search is {self.search!r}; choose one of {', '.join(SEARCHES)}")
        if self.search_k < 1:
            raise ValueError(f"search_k is {self.search_k}; the exact search needs at least one event")


class Outputs(NamedTuple):
    """Logits: of the objectives [B, M, O], of the one score [B, M], and of the soft search's own click task [B, M]."""

    towers: Tensor
    score: Tensor
    search: Tensor | None


class PScore(nn.Module):
    """Scores (user, item) pairs. Item rows are embedded by their three codes plus a row of their own."""

    sid_NL: Tensor
    item_category_N: Tensor

    def __init__(self, config: PScoreConfig, sid_NL: Tensor) -> None:
        super().__init__()
        d, self.config = config.d_model, config
        unknown = torch.full((1, sid_NL.shape[1]), config.codebook_size)
        self.register_buffer("sid_NL", torch.cat([sid_NL.long(), unknown]))
        self.register_buffer("item_category_N", torch.zeros(config.items + 1, dtype=torch.long))  # 0 = unknown
        self.code = nn.ModuleList(nn.Embedding(config.codebook_size + 1, d) for _ in range(sid_NL.shape[1]))
        self.item_residual = nn.Embedding(config.items + 1, d)
        nn.init.zeros_(self.item_residual.weight)
        self.static = nn.Embedding(config.static_buckets, 8)
        self.static_proj = nn.Linear(8 * config.static_features, d)
        self.gap, self.play = nn.Embedding(GAP_BUCKETS, d), nn.Embedding(PLAY_BUCKETS, d)
        self.label = nn.Embedding(LABEL_STATES, d)
        self.q, self.kv = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.long_gap = nn.Embedding(GAP_BUCKETS, config.gap_dim)
        self.soft = SoftSearch(d, d) if config.search == "soft" else None
        self.exact = ExactSearch(d, d + config.gap_dim, config.heads, d // config.heads)
        width = 3 * d + self.exact.width
        # All towers side by side in one product; the output weights keep them apart.
        self.tower = nn.Linear(width, len(LABELS) * config.tower_dim)
        self.tower_out_OT = nn.Parameter(torch.randn(len(LABELS), config.tower_dim) * config.tower_dim**-0.5)
        self.tower_bias_O = nn.Parameter(torch.zeros(len(LABELS)))
        self.fusion = nn.Sequential(
            nn.Linear(len(LABELS) * config.tower_dim + width, 64), nn.LeakyReLU(), nn.Linear(64, 1)
        )

    def item_vector(self, index: Tensor) -> Tensor:
        """Sum of an item's code embeddings and its own row; many lookups (training) go through one table of items."""
        if index.numel() > len(self.sid_NL):
            return F.embedding(index, self._rows(self.sid_NL) + self.item_residual.weight)
        return self._rows(self.sid_NL[index]) + self.item_residual(index)

    def _rows(self, codes: Tensor) -> Tensor:
        return torch.stack([table(codes[..., i]) for i, table in enumerate(self.code)]).sum(0)

    def forward(self, batch: dict[str, Tensor], candidate_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the objectives [B, M, O] and of the P-Score [B, M] for candidates (catalogue indices)."""
        return self.outputs(batch, candidate_BM)[:2]

    def outputs(self, batch: dict[str, Tensor], candidate_BM: Tensor) -> Outputs:
        """`forward` with the logit that trains the soft search (None with hard search)."""
        hidden, x, search = self.represent(batch, candidate_BM)
        towers = (hidden.unflatten(-1, self.tower_out_OT.shape) * self.tower_out_OT).sum(-1) + self.tower_bias_O
        read = hidden.detach() if self.config.stop_gradient else hidden
        return Outputs(towers, self.fusion(torch.cat([read, x], -1))[..., 0], search)

    def represent(self, batch: dict[str, Tensor], candidate_BM: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states of the towers [B, M, O * T], the backbone's [B, M, X] below them, and the search's logit."""
        short, history = batch["short"], long_history(batch)
        M, S = candidate_BM.shape[1], short.shape[1]
        events = torch.cat([short, history.events], 1)
        items = self.item_vector(torch.cat([candidate_BM, events[..., 0]], 1))
        item_BMD, event_item = items[:, :M], items[:, M:]
        event = event_item + self.play(events[..., 4]) + self.label(events[..., 6])
        user_BMD = self.static_proj(self.static(batch["static"]).flatten(1))[:, None].expand_as(item_BMD)
        recent_BMD = self._target_attention(item_BMD, event[:, :S] + self.gap(short[..., GAP]), batch["short_mask"])
        # General search, then exact search over what it chose.
        search, k = None, self.config.search_k
        if self.soft is None:
            category = self.item_category_N
            chosen = hard_search(category[candidate_BM], category[history.events[..., 0]], history.mask, k)
        else:
            relevance, search = self.soft(item_BMD, event_item[:, S:], history.mask)
            chosen = top_relevant(relevance, history.mask, k)
        z_BSZ = torch.cat([event[:, S:], self.long_gap(history.events[..., GAP])], -1)
        long_BMZ = self.exact(item_BMD, z_BSZ, chosen)
        x = torch.cat([item_BMD, user_BMD, recent_BMD, long_BMZ], -1)
        return F.leaky_relu(self.tower(x)), x, search

    def _target_attention(self, item_BMD: Tensor, h_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Multi-head attention of each candidate over the user's recent events; zeros with no events."""
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
        """The reward model of a directory for this tokenizer; new items start from their codes alone, in no category.

        Raises ValueError for a configuration of another version and for a tokenizer it was not trained with.
        """
        config = PScoreConfig(**read_fields(directory / "config.json", PScoreConfig))
        return restore(directory / "reward.safetensors", config, tokenizer, cls)
