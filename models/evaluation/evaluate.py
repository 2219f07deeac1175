"""Evaluation of a day: the next day's unseen positives, at item level, beside the floors and the production release.

Protocol: users with at least one positive (long_view, like, follow, forward) they were never shown before; seen items
are excluded from every list; mean over users. Lists come from the same search as serving's, which widens for users who
have seen much. Writes evaluation.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from models.evaluation.floors import popularity, rank_popular
from models.evaluation.metrics import bootstrap_interval, ranking_metrics
from models.evaluation.slices import slices
from models.onerec.beam_search import sample_codes
from models.onerec.features import POSITIVE_MASK
from models.onerec.ranking import rank_unseen
from models.reward.pscore import PScore
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import TrainingSet, read_ragged

TOP, BEAM, CHUNK = 100, 160, 256
LEGALITY_USERS, LEGALITY_SAMPLES = 512, 16


def evaluate(
    *,
    evaluation_set: Path,
    training_sets: list[Path],
    tokenizer: Path,
    model: Path,
    reward: Path,
    pretrained: Path,
    production: Path | None,
    out: Path,
    seed: int,
    progress: Callable[[str], None] = print,
) -> dict:
    """`training_sets`: every day up to D, for the floors. `production`: the release in production, or None.

    Returns `users`, the `rows` of the models and floors, the `slices` of this release beside production (or the most
    popular items at a first release), and of this release: `filled` (share of the TOP places with an
    item), `legality` (share of the filled places whose codes are that item's in the SID table),
    `unconstrained_legality` (share of legal free samples) and `p_score_top10`. The row `production` also has the 95 %
    interval of this release's recall@50 minus production's, paired by user.
    Raises ValueError when the evaluation rows hold no user with an unseen positive.
    """
    rows, relevant, seen = held_out(evaluation_set)
    progress(f"{len(rows):,} users with unseen positives")
    results = []
    lists: dict[str, np.ndarray] = {}
    for name, sets in (("most_popular_all", training_sets), ("most_popular_3d", sorted(training_sets)[-3:])):
        lists[name] = rank_popular(popularity(sets)[0], seen, TOP)
        results.append(_row(name, lists[name], relevant, seed))
    tok = Tokenizer.load(tokenizer)
    candidates = [("onerec", tok, model), ("onerec_pretrained", tok, pretrained)]
    if production is not None:
        candidates.append(("production", Tokenizer.load(production / "tokenizer"), production / "model"))
    extra: dict = {}
    recall: dict[str, np.ndarray] = {}
    for name, own_tok, directory in candidates:
        if name == "onerec_pretrained" and _same_file(model, pretrained):
            results.append({**results[-1], "name": name})
            continue
        progress(f"ranking with {name}")
        ranker = Ranker(evaluation_set, own_tok, directory, rows)
        ranked, legality = ranker.rank(seen)
        lists[name] = ranked
        results.append(_row(name, ranked, relevant, seed))
        recall[name] = ranking_metrics(ranked, relevant)["recall@50"]
        if name == "production":
            gain = recall["onerec"] - recall[name]
            results[-1]["recall@50_gain_interval"] = list(bootstrap_interval(gain, seed))
        if name == "onerec":
            extra = {
                "legality": legality,
                "filled": float((ranked >= 0).mean()),
                "unconstrained_legality": ranker.free_legality(seed),
                "p_score_top10": ranker.p_score(reward, ranked),
            }
    order = {"onerec": 0, "onerec_pretrained": 1, "production": 2}
    results.sort(key=lambda r: order.get(r["name"], 3))
    reference = "production" if production is not None else "most_popular_all"
    by_slice = slice_rows(lists["onerec"], lists[reference], reference, relevant, seen, popularity(training_sets), seed)
    report = {"users": len(rows), "rows": results, "slices": by_slice, **extra}
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def held_out(evaluation_set: Path) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Rows that count, their relevant item ids (positive and never shown before), and what each had seen."""
    table = pq.read_table(evaluation_set)
    shown, seen = read_ragged(table, ["item_id", "label"]), read_ragged(table, ["seen_item_id"])
    rows, relevant, before = [], [], []
    for i in range(len(table)):
        item, label = shown.row(i).reshape(-1, 2).T
        wanted = np.setdiff1d(item[(label & POSITIVE_MASK) > 0], seen.row(i))
        if len(wanted):
            rows.append(i)
            relevant.append(wanted)
            before.append(seen.row(i))
    if not rows:
        raise ValueError(
            f"{evaluation_set}: no user has a positive item they had not seen; evaluate a day with more impressions"
        )
    return np.array(rows), relevant, before


def slice_rows(
    ranked: np.ndarray,
    against: np.ndarray,
    name: str,
    relevant: list[np.ndarray],
    seen: list[np.ndarray],
    popular: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> list[dict]:
    """recall@50 of every slice beside that of the reference `name`, with the 95 % interval of the paired difference."""
    out = []
    for title, users, wanted in slices(relevant, seen, popular):
        own, other = (ranking_metrics(lists[users], wanted)["recall@50"] for lists in (ranked, against))
        out.append(
            {
                "name": title,
                "users": len(users),
                "recall@50": float(own.mean()),
                "reference_name": name,
                "reference": float(other.mean()),
                "gain_interval": list(bootstrap_interval(own - other, seed)),
            }
        )
    return out


class Ranker:
    """One model over the evaluation rows, `CHUNK` users at a time: memory does not grow with their number."""

    def __init__(
        self, evaluation_set: Path, tok: Tokenizer, directory: Path, rows: np.ndarray, device: str = "cpu"
    ) -> None:
        self.tok, self.rows, self.device = tok, rows, device
        self.model = load_model(directory, tok).eval().to(device)
        self.data = TrainingSet([evaluation_set], tok.catalogue, self.model.config)

    def rank(
        self, seen: list[np.ndarray], progress: Callable[[int], None] = lambda users: None
    ) -> tuple[np.ndarray, float]:
        """Unseen item ids by score [U, TOP] (-1 where nothing is left), and the share of places that are legal.

        A place is legal when the codes that were spelled are its item's row of the SID table, whatever the trie says.
        """
        catalogue, sid_NL = self.tok.catalogue, self.tok.sid_NL
        out, legal, placed = np.full((len(self.rows), TOP), -1, np.int64), 0, 0
        trie = self.tok.trie.to(self.device)
        for start in range(0, len(self.rows), CHUNK):
            chunk = self.rows[start : start + CHUNK]
            unwanted = [catalogue.index(items) for items in seen[start : start + CHUNK]]
            context = {name: t.to(self.device) for name, t in self.data.context(chunk).items()}
            ranked = rank_unseen(self.model, context, trie, unwanted, TOP, BEAM)
            for row, (item, _, codes) in zip(out[start:], ranked):
                row[: len(item)] = catalogue.item_ids[item]
                legal, placed = legal + int((sid_NL[item] == codes).all(1).sum()), placed + len(item)
            progress(start + len(chunk))
        return out, legal / placed if placed else 0.0

    @torch.no_grad()
    def free_legality(self, seed: int) -> float:
        """Share of legal tuples among unconstrained samples."""
        context = self.data.context(self.rows[:LEGALITY_USERS])
        z, mask = self.model.encode(context)
        codes = sample_codes(self.model, z, mask, LEGALITY_SAMPLES, torch.Generator().manual_seed(seed))
        return float((self.tok.trie.lookup(codes) >= 0).float().mean())

    def p_score(self, reward: Path, ranked: np.ndarray) -> float:
        """Mean P-Score of the first ten places."""
        model, total, count = PScore.load(reward, self.tok).eval(), 0.0, 0
        for start in range(0, len(self.rows), CHUNK):
            top = ranked[start : start + CHUNK, :10]
            index = torch.from_numpy(self.tok.catalogue.index(top.ravel()).reshape(top.shape))
            score = model.score(self.data.context(self.rows[start : start + CHUNK]), index)
            keep = torch.from_numpy(top >= 0)
            total, count = total + float(score[keep].sum()), count + int(keep.sum())
        return total / max(count, 1)


def _row(name: str, ranked: np.ndarray, relevant: list[np.ndarray], seed: int) -> dict:
    """Means of all metrics and the 95 % interval of recall@50."""
    values = ranking_metrics(ranked, relevant)
    low, high = bootstrap_interval(values["recall@50"], seed)
    return {"name": name, **{k: float(v.mean()) for k, v in values.items()}, "recall@50_interval": [low, high]}


def _same_file(a: Path, b: Path) -> bool:
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
