"""Tokenize a day: semantic IDs of all items, codebooks frozen since the first day."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import release_before
from kfp_components.step import Outcome


def run(run: Run, *, tables: Outcome, features: Outcome) -> Outcome:
    """Writes tokenizer.json, codebooks.safetensors, sid_table.parquet, trie.safetensors.

    ONEREC_REPRESENTATION: the kind a fit learns, "svd" (default), "aligned" or "aligned_small".
    """
    w, before = run.workspace, release_before(run.workspace, run.day)
    representation = os.environ.get("ONEREC_REPRESENTATION", "svd")

    def body(out: Path, progress) -> dict[str, Any]:
        from models.tokenizer.refresh import refresh_tokenizer

        return refresh_tokenizer(
            items=w.partition("items", run.day),
            training_sets=w.training_sets(run.day, bootstrap=before is None),
            previous=before.release / "tokenizer" if before else None,
            out=out,
            seed=run.seed,
            representation=representation,
            progress=progress,
        )

    return run.step(
        "tokenize",
        inputs=[tables, features, before.publish if before else None],
        rooms=("models/tokenizer", "models/onerec/features.py"),
        settings={"representation": representation},
        body=body,
    )
