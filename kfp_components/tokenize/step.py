"""Tokenize a day: semantic IDs of all items; codebooks frozen but for a refit. A failed gate ends the day."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import partition_digests, release_before
from kfp_components.step import Outcome


def run(run: Run, *, tables: Outcome, features: Outcome, refit: bool = False) -> Outcome:
    """Writes tokenizer.json, codebooks.safetensors, sid_table.parquet, trie.safetensors, and carry.safetensors if known
    items changed their ID. A fit, also one that drift asks for, learns from every day up to this one.

    A killed alignment goes on from <workspace>/checkpoints/<day>/alignment, which is deleted in the end.
    ONEREC_REPRESENTATION: the kind a fit learns, "svd" (default), "aligned" or "aligned_small".
    """
    w, before = run.workspace, release_before(run.workspace, run.day)
    representation = os.environ.get("ONEREC_REPRESENTATION", "svd")
    history, work = w.training_sets(run.day, bootstrap=True), w.base / "checkpoints" / run.day / "alignment"

    def body(out: Path, progress) -> dict[str, Any]:
        from models.tokenizer.gates import require
        from models.tokenizer.refresh import RefreshConfig, refresh_tokenizer

        report = refresh_tokenizer(
            items=w.partition("items", run.day),
            training_sets=history,
            previous=before.release / "tokenizer" if before else None,
            out=out,
            seed=run.seed,
            refit=refit,
            config=RefreshConfig(representation=representation),
            work=work,
            progress=progress,
        )
        shutil.rmtree(work, ignore_errors=True)
        require(report["gates"])
        return report

    return run.step(
        "tokenize",
        inputs=[tables, features, before.publish if before else None],
        rooms=("models/tokenizer", "models/onerec/features.py"),
        settings={"refit": refit, "representation": representation, "history": partition_digests(history)},
        body=body,
    )
