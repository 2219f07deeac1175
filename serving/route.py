"""A release as `recommend` knows it: its context encoder, its catalogue with authors and ages, and the choice of items.

route = Route.load(Path("store/releases/<id>"))
picked = route.pick(items, scores, sids, ask, seen, blocked)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.services import SERVICE
from models.onerec.config import OneRecConfig
from models.training.checkpoint import Tokenizer
from releases.manifest import MANIFEST, Manifest
from serving.config import MODEL_PREFIX
from serving.context import Encoder

UNKNOWN = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """One checked request. live: events [n, 7] newer than the tables; max_age_s 0: any age; beam 0: chosen here."""

    user_id: int
    k: int
    now_s: int
    exclude: np.ndarray
    exclude_authors: np.ndarray
    live: np.ndarray
    max_age_s: int
    beam: int
    rerank: bool

    def first_beam(self, max_beam: int) -> int:
        """At least 128: narrower beams find worse items and save little. Twice k, so that seen items leave k others."""
        return min(self.beam or max(2 * self.k, 128), max_beam)


@dataclasses.dataclass(frozen=True)
class Picked:
    """Items best first with scores and codes; `illegal`: how many the model returned whose code is not theirs."""

    items: np.ndarray
    scores: np.ndarray
    sids: np.ndarray
    illegal: int


class Route:
    """Everything of a release that `recommend` needs; the model itself lives in the Triton model `self.model`."""

    def __init__(self, release_id: str, config: OneRecConfig, tokenizer: Tokenizer, items: Path) -> None:
        self.release_id, self.model = release_id, MODEL_PREFIX + release_id
        self.catalogue, self.sid_NL = tokenizer.catalogue, tokenizer.sid_NL
        self.encoder = Encoder(config, tokenizer.catalogue)
        self.author, self.upload_s, self.listed = _about(items, self.catalogue.item_ids)
        self.release = np.frombuffer(release_id.encode(), np.uint8)

    @classmethod
    def load(cls, folder: Path) -> Route:
        """Raises ValueError for another feature service, or for a tokenizer whose files do not belong together.

        The files' digests are checked where the model is loaded (`onerec`) and where a release is fetched.
        """
        manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes(), f"{folder}/{MANIFEST}")
        if (service := manifest.summaries.get("feature_service", {}).get("name")) != SERVICE:
            raise ValueError(
                f"release {manifest.release_id} wants feature service {service}, this server reads {SERVICE};"
                " do not mix them: serve the release with the code it was made by"
            )
        tokenizer = Tokenizer.load(folder / "tokenizer")
        config = OneRecConfig.load(folder / "model" / "config.json")
        return cls(manifest.release_id, config, tokenizer, folder / "items.parquet")

    def pick(
        self, items: np.ndarray, scores: np.ndarray, sids: np.ndarray, ask: Ask, seen: np.ndarray, blocked: np.ndarray
    ) -> Picked:
        """The first k of `items` [n] that are legal, not withdrawn, seen, excluded or blocked, and pass the filters."""
        real = items >= 0
        items, scores, sids = items[real], scores[real], sids[real]
        at = self.catalogue.index(items)
        known = at < len(self.catalogue)
        at = np.where(known, at, 0)
        legal = known & (self.sid_NL[at] == sids).all(1)
        keep = legal & self.listed[at] & ~np.isin(items, seen) & ~np.isin(items, ask.exclude) & ~np.isin(items, blocked)
        if len(ask.exclude_authors):
            keep &= ~np.isin(self.author[at], ask.exclude_authors)
        if ask.max_age_s:  # an item of unknown age is not known to be young enough
            keep &= (self.upload_s[at] > 0) & (self.upload_s[at] >= ask.now_s - ask.max_age_s)
        first = np.flatnonzero(keep)
        _, once = np.unique(items[first], return_index=True)
        first = first[np.sort(once)][: ask.k]
        return Picked(items[first], scores[first], sids[first], int((~legal).sum()))


def _about(file: Path, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Author, upload time (unix seconds, 0 unknown) and presence in the release's items, of each item of the catalogue.

    The catalogue never loses an item, because the model's rows follow it; one that the items lack is withdrawn.
    """
    table = pq.read_table(file, columns=["item_id", "author_id", "upload_time"])
    ids = table["item_id"].to_numpy()
    author = table["author_id"].fill_null(UNKNOWN).to_numpy()
    seconds = pc.cast(pc.cast(table["upload_time"], "timestamp[ms]"), "int64").fill_null(0).to_numpy() // 1000
    order = np.argsort(ids, kind="stable")
    at = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)] if len(ids) else np.zeros(0, np.int64)
    found = ids[at] == wanted
    return np.where(found, author[at], UNKNOWN), np.where(found, seconds[at], 0), found
