"""The ranking stage of a cascade: DIN over what a user did lately, SIM over everything, one logit a candidate.

    ranker = Ranker(RankerConfig(items=7583, static_features=26), about_ND)
    logit_BM = ranker(batch, candidate_BM)                  # batch: OneRec's four pathways, models/training/data.py

DIN (Zhou et al. 2018, arXiv 1706.06978, section 4.3): an activation unit weighs each short-term and each positive event
by what it says about the candidate; the weights are not normalised. SIM (arXiv 2006.05639): of the long history the
newest events of the candidate's category are searched and attended. It reads exactly what OneRec reads, plus the
candidate's own author, tag and duration.

Legend: B users, M candidates, S events, D width, N items.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.features import DURATION_BUCKETS, GAP_BUCKETS, LABEL_STATES, PLAY_BUCKETS
from models.reward.search import ExactSearch, hard_search, long_history

FEATURE, UNIT, HIDDEN = 16, 32, (256, 64)  # widths: an event's feature, the activation unit, the last layers
AUTHOR, TAG, DURATION = 1, 2, 5  # fields of an event that belong to its item


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Sizes; buckets and lengths are OneRec's (models/onerec/config.py)."""

    items: int
    static_features: int
    d_model: int = 64
    heads: int = 2
    search_k: int = 16
    dropout: float = 0.2
    author_buckets: int = 8192
    tag_buckets: int = 512
    static_buckets: int = 8192
    short_len: int = 20
    positive_len: int = 64
    lifelong_len: int = 64


class Ranker(nn.Module):
    """`about_N3`: author, tag and duration bucket of each item; row N is the unknown item."""

    about_N3: Tensor

    def __init__(self, config: RankerConfig, about_N3: Tensor) -> None:
        super().__init__()
        c, d, self.config = config, config.d_model, config
        self.register_buffer("about_N3", about_N3)
        self.item = nn.Embedding(c.items + 1, d)
        nn.init.normal_(self.item.weight, std=0.02)
        sizes = {"author": c.author_buckets, "tag": c.tag_buckets, "duration": DURATION_BUCKETS}
        sizes |= {"gap": GAP_BUCKETS, "play": PLAY_BUCKETS, "label": LABEL_STATES}
        self.feature = nn.ModuleDict({name: nn.Embedding(rows, FEATURE) for name, rows in sizes.items()})
        self.static = nn.Embedding(c.static_buckets, 8)
        for table in (*self.feature.values(), self.static):
            nn.init.normal_(table.weight, std=0.02)
        self.candidate = nn.Linear(d + 3 * FEATURE, d)
        self.event = nn.Linear(d + 6 * FEATURE, d)
        self.user = nn.Linear(8 * c.static_features, d)
        self.unit_event, self.unit_candidate = nn.Linear(d, UNIT), nn.Linear(d, UNIT, bias=False)
        self.unit_both, self.unit_out = nn.Linear(d, UNIT, bias=False), nn.Linear(UNIT, 1)
        self.search = ExactSearch(d, d, c.heads, d // c.heads)
        self.width = 5 * d + self.search.width
        layers: list[nn.Module] = []
        for a, b in zip((self.width, *HIDDEN), HIDDEN):
            layers += [nn.Linear(a, b), nn.PReLU(), nn.Dropout(c.dropout)]
        self.top = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))
        self.drop = nn.Dropout(c.dropout)

    def events(self, events_BS7: Tensor) -> Tensor:
        """Vectors [B, S, D] of encoded events."""
        item, author, tag, gap, play, duration, label = events_BS7.unbind(-1)
        values = {"author": author, "tag": tag, "duration": duration, "gap": gap, "play": play, "label": label}
        parts = [self.item(item), *(self.feature[name](value) for name, value in values.items())]
        return F.leaky_relu(self.event(self.drop(torch.cat(parts, -1))))

    def candidates(self, item_BM: Tensor) -> Tensor:
        """Vectors [B, M, D] of items."""
        author, tag, duration = self.about_N3[item_BM].unbind(-1)
        parts = [self.item(item_BM), self.feature["author"](author), self.feature["tag"](tag)]
        return F.leaky_relu(self.candidate(self.drop(torch.cat([*parts, self.feature["duration"](duration)], -1))))

    def interest(self, item_BMD: Tensor, event_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """DIN's activation unit [B, M, D]: a small network of event, candidate and their product weighs each event.

        Its first layer reads [event, candidate, event * candidate] as three products, so that the first two are
        computed once an event and once a candidate.
        """
        both = self.unit_event(event_BSD)[:, None] + self.unit_candidate(item_BMD)[:, :, None]
        # (event * candidate) W = event (W scaled by candidate): the pairs' products are never written down.
        scaled_BMDU = item_BMD[..., None] * self.unit_both.weight.T
        both = both + torch.einsum("bsd,bmdu->bmsu", event_BSD, scaled_BMDU)
        weight_BMS = self.unit_out(F.leaky_relu(both))[..., 0] * mask_BS[:, None]
        return weight_BMS @ event_BSD

    def forward(self, batch: dict[str, Tensor], item_BM: Tensor) -> Tensor:
        """Logits [B, M] of catalogue indices."""
        c = self.candidates(item_BM)
        recent, history = torch.cat([batch["short"], batch["positive"]], 1), long_history(batch)
        S = recent.shape[1]
        event = self.events(torch.cat([recent, history.events], 1))
        split, masks = batch["short"].shape[1], (batch["short_mask"], batch["positive_mask"])
        short = self.interest(c, event[:, :split], masks[0])
        positive = self.interest(c, event[:, split:S], masks[1])
        tag_N = self.about_N3[:, 1]
        chosen = hard_search(tag_N[item_BM], history.events[..., TAG], history.mask, self.config.search_k)
        long = self.search(c, event[:, S:], chosen)
        user = F.leaky_relu(self.user(self.drop(self.static(batch["static"]).flatten(1))))[:, None].expand_as(c)
        return self.top(torch.cat([c, user, short, positive, c * positive, long], -1))[..., 0]

    def flops(self, candidates: int) -> float:
        """Of one user with full histories, counted as in models/onerec/flops.py: products alone, as computed."""
        c, d = self.config, self.config.d_model
        recent, long = c.short_len + c.positive_len, c.positive_len + c.lifelong_len
        once = 2.0 * d * (8 * c.static_features) + (recent + long) * 2.0 * d * (d + 6 * FEATURE)
        once += recent * 2.0 * d * UNIT + long * 2.0 * d * d  # the unit's and the search's reading of events
        unit = 2 * 2.0 * d * UNIT + recent * (2.0 * d * UNIT + 2.0 * UNIT + 2.0 * d)
        search = 2.0 * d * d + long * (2.0 * d + 2.0 * self.search.width)
        top = sum(2.0 * a * b for a, b in zip((self.width, *HIDDEN), (*HIDDEN, 1)))
        return once + candidates * (2.0 * d * (d + 3 * FEATURE) + unit + search + top)


def about_items(events_of: list[Tensor], items: int) -> Tensor:
    """[N + 1, 3] author, tag and duration bucket of each item, as encoded events [E, 7] tell; 0 where none does."""
    about = torch.zeros(items + 1, 3, dtype=torch.long)
    for events_E7 in events_of:
        about[events_E7[:, 0]] = events_E7[:, [AUTHOR, TAG, DURATION]].long()
    about[items] = 0
    return about
