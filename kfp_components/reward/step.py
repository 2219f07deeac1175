"""Reward of a day: the P-Score model learns from the day's labelled impressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import release_before
from kfp_components.step import Outcome


def run(run: Run, *, features: Outcome, tokenizer: Outcome) -> Outcome:
    """Writes reward.safetensors, config.json, metrics.json."""
    w, before = run.workspace, release_before(run.workspace, run.day)

    def body(out: Path, progress) -> dict[str, Any]:
        from models.reward.train import train_reward

        return train_reward(
            training_sets=w.training_sets(run.day, bootstrap=before is None),
            tokenizer=tokenizer.path,
            items=w.partition("items", run.day),
            previous=before.release / "reward" if before else None,
            out=out,
            seed=run.seed,
            progress=progress,
        )

    return run.step(
        "reward",
        inputs=[features, tokenizer, before.publish if before else None],
        rooms=(
            "models/reward",
            "models/onerec",
            "models/tokenizer/sid_table.py",
            "models/tokenizer/trie.py",
            "models/tokenizer/carry.py",
            "models/tokenizer/unique.py",
            "models/training",
        ),
        body=body,
    )
