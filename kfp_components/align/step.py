"""Align a day: RSFT and ECPO on the newest day, from the pre-trained model; kept only if recall does not suffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import release_before
from kfp_components.step import Outcome


def run(run: Run, *, features: Outcome, tokenizer: Outcome, pretrained: Outcome, reward: Outcome) -> Outcome:
    """Writes model.safetensors, config.json, optimizer.safetensors, metrics.json."""
    w, bootstrap = run.workspace, release_before(run.workspace, run.day) is None

    def body(out: Path, progress) -> dict[str, Any]:
        from models.training.align import align
        from models.training.align_config import AlignConfig, align_later_day

        return align(
            training_sets=w.training_sets(run.day, bootstrap=False),
            tokenizer=tokenizer.path,
            model=pretrained.path,
            reward=reward.path,
            out=out,
            seed=run.seed,
            progress=progress,
            config=AlignConfig() if bootstrap else align_later_day(),
        )

    return run.step(
        "align",
        inputs=[features, tokenizer, pretrained, reward],
        rooms=(
            "models/training",
            "models/onerec",
            "models/tokenizer/sid_table.py",
            "models/tokenizer/trie.py",
            "models/tokenizer/carry.py",
            "models/tokenizer/unique.py",
            "models/reward",
            "models/evaluation/floors.py",
        ),
        settings={"bootstrap": bootstrap},
        body=body,
    )
