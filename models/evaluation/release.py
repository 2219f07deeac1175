"""A release on any day's evaluation rows: the table of the quality benchmarks, with slices and intervals.

    report = evaluate_release(release=folder, evaluation_set=rows, training_sets=[...])

`onerec eval` prints it. Users are ranked in chunks, so memory does not grow with their number beyond the rows' own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.evaluation.evaluate import TOP, Ranker, held_out
from models.evaluation.floors import popularity, rank_popular
from models.evaluation.metrics import bootstrap_interval, ranking_metrics
from models.evaluation.slices import slices
from models.training.checkpoint import Tokenizer

METRICS = ("recall@10", "recall@50", "recall@100", "ndcg@10", "ndcg@50")


def evaluate_release(
    *,
    release: Path,
    evaluation_set: Path,
    training_sets: list[Path],
    seed: int = 0,
    users: int | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows of the release and of the most popular items: every metric with its 95 % interval over users, by slice.

    release: folder with tokenizer/ and model/. evaluation_set: rows as the features step writes them. training_sets:
    what came before, for popularity and for what a new item is. users: a random sample of so many (None: all).
    Raises ValueError when no user has an unseen positive item or release and data do not fit.
    """
    rows, relevant, seen = held_out(evaluation_set)
    if users is not None and users < len(rows):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:users])
        rows, relevant, seen = rows[chosen], [relevant[i] for i in chosen], [seen[i] for i in chosen]
    progress(f"{len(rows):,} users with unseen positives")
    tokenizer = Tokenizer.load(release / "tokenizer")
    ranker = Ranker(evaluation_set, tokenizer, release / "model", rows, device)
    ranked, legality = ranker.rank(seen, lambda done: progress(f"ranked {done:,} of {len(rows):,} users"))
    popular = popularity(training_sets)
    lists = {"onerec": ranked, "most popular": rank_popular(popular[0], seen, TOP)}
    report: dict[str, Any] = {"release": release.name, "users": len(rows), "legality": legality, "rows": []}
    for name, of_users, wanted in slices(relevant, seen, popular):
        for model, places in lists.items():
            values = ranking_metrics(places[of_users], wanted)
            row: dict[str, Any] = {"slice": name, "model": model, "users": len(of_users)}
            for metric in METRICS:
                row[metric] = float(values[metric].mean())
                row[f"{metric}_interval"] = list(bootstrap_interval(values[metric], seed))
            report["rows"].append(row)
    return report
