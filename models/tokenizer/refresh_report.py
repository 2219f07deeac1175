"""What the run report and the gates learn of a refresh: metrics of the IDs as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from models.tokenizer import metrics
from models.tokenizer.items_table import content_of, read_positives, read_rows
from models.tokenizer.sid_table import LEVEL_COLUMNS
from models.tokenizer.state import LEVELS, TokenizerState, decode

SHOWN = 20_000  # items that the code tree and the neighbour quality look at


def measure(
    before: TokenizerState | None,
    tokens: TokenizerState,
    named: dict,
    items: Path,
    ids: np.ndarray,
    training_sets: list[Path],
    out: Path,
    seed: int,
) -> dict:
    """The report; what changed is read from the table as it was written."""
    size, written = len(tokens.books[0]), pq.read_table(out / "sid_table.parquet")
    now = written["item_id"].to_numpy(), np.stack([written[c].to_numpy() for c in LEVEL_COLUMNS], 1)
    changed = moved = 0
    if before is not None:
        changed = metrics.changed_ids(before.ids, before.codes, *now)
        if named["moved"] is not None:
            stays = ~named["moved"]
            moved = metrics.changed_ids(before.ids[stays], before.codes[stays], *now)
    shown = np.sort(np.random.default_rng(seed).permutation(ids)[:SHOWN])
    content = content_of(read_rows(items, shown if len(shown) < len(ids) else None))
    order = np.argsort(tokens.ids, kind="stable")
    codes = tokens.codes[order[np.searchsorted(tokens.ids[order], content.ids)]]
    users, liked = read_positives(training_sets, content.ids)
    rebuilt = decode(named["unique"], tokens.books)
    return {
        "items": len(tokens.ids),
        "new_items": len(tokens.ids) - (len(before.ids) if before is not None else 0),
        "changed_items": named["changed"],
        "named_items": len(named["unique"]),
        "changed_ids": changed,
        "moved_ids": moved,
        "levels": LEVELS,
        "codebook_size": size,
        **metrics.level_metrics(tokens.codes, size),
        "reconstruction_loss": metrics.reconstruction_loss(named["vectors"], rebuilt, tokens.fit["variance"]),
        "collision_rate_before": metrics.collision_rate(named["nearest"], named["taken"]),
        "collision_rate_after": metrics.collision_rate(tokens.codes),
        "neighbours": metrics.neighbour_quality(codes, content.tags, users, liked, seed),
        "code_tree": metrics.code_tree(codes, content.tags, content.texts),
    }
