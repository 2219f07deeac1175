"""Align a day: RSFT and ECPO on the newest day, from the pre-trained model; kept only if recall does not suffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome


def run(run: Run, *, features: Outcome, tokenizer: Outcome, pretrained: Outcome, reward: Outcome) -> Outcome:
    """Writes model.safetensors, config.json, optimizer.safetensors, metrics.json."""
    w = run.workspace

    def body(out: Path, progress) -> dict[str, Any]:
        from models.training.align import align

        return align(
            training_sets=w.training_sets(run.day, bootstrap=False),
            tokenizer=tokenizer.path,
            model=pretrained.path,
            reward=reward.path,
            out=out,
            seed=run.seed,
            progress=progress,
        )

    return run.step(
        "align",
        inputs=[features, tokenizer, pretrained, reward],
        rooms=(
            "models/training",
            "models/onerec",
            "models/tokenizer/trie.py",
            "models/tokenizer/carry.py",
            "models/reward",
        ),
        body=body,
    )
