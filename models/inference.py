"""The loaded model of one release: raw feature arrays of one user in, item ids out. Triton's `onerec` model calls it.

recommender = Recommender.load(Path("var/simulated/store/releases/<id>"))

With `select="p_score"` the release's reward model chooses (the report's "RM selection"): as many items are generated as
the beam is wide, and those with the highest P-Score are returned, best first.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from models.onerec.features import NUM_FIELDS, encode_events
from models.onerec.model import OneRec
from models.onerec.ranking import MAX_BEAM, rank_lists, rank_unseen
from models.reward.pscore import PScore
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import PATHWAYS

SELECTIONS = ("", "p_score")


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """Items best first: ids [k] int64, scores [k] float32 (log-probability, or P-Score if selected), codes [k, 3].

    k may be less than asked.
    """

    item_ids: np.ndarray
    scores: np.ndarray
    sids: np.ndarray


class Recommender:
    """Tokenizer and model that belong together, ready to answer. Safe to call from one thread at a time."""

    def __init__(self, model: OneRec, tokenizer: Tokenizer, p_score: PScore | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.p_score = p_score.eval() if p_score else None
        self.lengths = {
            "short": model.config.short_len,
            "positive": model.config.positive_len,
            "lifelong": model.config.lifelong_len,
        }

    @classmethod
    def load(cls, release: Path, select: str = "") -> Recommender:
        """From a release directory (tokenizer/ and model/, and reward/ to select by "p_score").

        Raises ValueError when they do not match or `select` is unknown.
        """
        if select not in SELECTIONS:
            raise ValueError(f"select is {select!r}; choose one of {list(SELECTIONS)} (empty: the model's own order)")
        if select and not (release / "reward").is_dir():
            raise ValueError(f"{release.name} has no reward model to select by; publish one, or serve without `select`")
        tokenizer = Tokenizer.load(release / "tokenizer")
        p_score = PScore.load(release / "reward", tokenizer) if select else None
        return cls(load_model(release / "model", tokenizer), tokenizer, p_score)

    def recommend(
        self,
        *,
        static: np.ndarray,
        short: np.ndarray,
        positive: np.ndarray,
        lifelong: np.ndarray,
        now_s: int,
        exclude: np.ndarray,
        k: int,
        beam: int,
    ) -> Recommendation:
        """Up to k items that are not in `exclude` (item ids, also such as the release does not know).

        static: int64 [S]; short, positive, lifelong: int64 [n, 7], oldest first. The beam is widened (up to MAX_BEAM)
        while exclusions leave fewer than k items. Raises ValueError on a wrong shape, a static code outside its table,
        or a k or beam outside 1..MAX_BEAM.
        """
        for name, value in (("k", k), ("beam", beam)):
            if not 1 <= value <= MAX_BEAM:
                raise ValueError(f"{name} is {value}; it must lie in 1..{MAX_BEAM}")
        batch = self._context(static, (short, positive, lifelong), now_s)
        catalogue = self.tokenizer.catalogue
        unwanted = catalogue.index(np.asarray(exclude, np.int64))
        choose = self.p_score is not None
        trie, width = self.tokenizer.trie, max(beam, k)
        index, score, codes = rank_unseen(self.model, batch, trie, [unwanted], k, width, keep_all=choose)[0]
        if self.p_score is not None and len(index):
            score = self.p_score.score(batch, torch.from_numpy(index)[None])[0].numpy()
            best = np.argsort(-score, kind="stable")[:k]
            index, score, codes = index[best], score[best], codes[best]
        return Recommendation(catalogue.item_ids[index], score.astype(np.float32), codes.astype(np.int32))

    def recommend_list(
        self,
        *,
        static: np.ndarray,
        short: np.ndarray,
        positive: np.ndarray,
        lifelong: np.ndarray,
        now_s: int,
        exclude: np.ndarray,
        beam: int,
    ) -> Recommendation:
        """The best list of a session-wise model, its items in the order in which they are to be shown.

        Arguments as of `recommend`; every score is the whole list's log-probability. Empty if the beam holds no list
        without excluded items. Raises ValueError also for a model that generates single items.
        """
        m, catalogue = self.model.config.session_items, self.tokenizer.catalogue
        if m == 1:
            raise ValueError("this release generates single items; use recommend, or train with session_items over 1")
        if not 1 <= beam <= MAX_BEAM:
            raise ValueError(f"beam is {beam}; it must lie in 1..{MAX_BEAM}")
        batch = self._context(static, (short, positive, lifelong), now_s)
        unwanted = [catalogue.index(np.asarray(exclude, np.int64))]
        index, logp = rank_lists(self.model, batch, self.tokenizer.trie, unwanted, m, beam)[0]
        scores = np.full(len(index), logp, np.float32)
        return Recommendation(catalogue.item_ids[index], scores, self.tokenizer.sid_NL[index].astype(np.int32))

    def _context(self, static: np.ndarray, histories: tuple[np.ndarray, ...], now_s: int) -> dict[str, torch.Tensor]:
        """A batch of one user from raw feature arrays; ValueError names what does not fit the release."""
        c = self.model.config
        if static.shape != (c.static_features,):
            raise ValueError(
                f"static has shape {static.shape}, the release wants ({c.static_features},); use its feature service"
            )
        if (static < 0).any() or (static >= c.static_buckets).any():
            raise ValueError(f"static codes must lie in 0..{c.static_buckets - 1}")
        batch = {"static": torch.from_numpy(static.astype(np.int64))[None]}
        for name, raw in zip(PATHWAYS, histories):
            if raw.ndim != 2 or raw.shape[1] != NUM_FIELDS:
                raise ValueError(f"{name} has shape {raw.shape}; it must be [n, {NUM_FIELDS}]")
            raw = raw[-self.lengths[name] :]
            now = np.full(len(raw), now_s, np.int64)
            events = encode_events(raw, now, self.tokenizer.catalogue, c.author_buckets, c.tag_buckets)
            batch[name] = torch.from_numpy(events)[None]
            batch[f"{name}_mask"] = torch.ones(1, len(raw), dtype=torch.bool)
        return batch
