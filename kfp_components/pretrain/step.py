"""Pre-train a day: next-token prediction on the day's positives, from the release of the day before."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import release_before
from kfp_components.step import Outcome

ROOMS = (
    "models/onerec",
    "models/tokenizer/trie.py",
    "models/tokenizer/carry.py",
    "models/training/pretrain.py",
    "models/training/checkpoint.py",
    "models/training/data.py",
    "models/training/losses.py",
)


def run(run: Run, *, features: Outcome, tokenizer: Outcome) -> Outcome:
    """Writes model.safetensors, config.json, optimizer.safetensors, metrics.json."""
    w, before = run.workspace, release_before(run.workspace, run.day)

    def body(out: Path, progress) -> dict[str, Any]:
        from models.training.pretrain import pretrain

        with before.checkpoint() if before else contextlib.nullcontext() as previous:
            return pretrain(
                training_sets=w.training_sets(run.day, bootstrap=before is None),
                tokenizer=tokenizer.path,
                previous=previous,
                out=out,
                seed=run.seed,
                progress=progress,
            )

    return run.step(
        "pretrain", inputs=[features, tokenizer, before.publish if before else None], rooms=ROOMS, body=body
    )
