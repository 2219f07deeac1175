"""Evaluate a day: on the next day's impressions, beside the floors, the pre-trained model and production."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import open_store, partition_digests, production_before
from kfp_components.step import Outcome
from releases.manifest import load_release


def run(
    run: Run, *, features: Outcome, tokenizer: Outcome, pretrained: Outcome, model: Outcome, reward: Outcome
) -> Outcome:
    """Writes evaluation.json. The floors know every day up to this one, whatever the model was trained on today."""
    w = run.workspace
    history = w.training_sets(run.day, bootstrap=True)
    production = production_before(w, run.day)

    def body(out: Path, progress) -> dict[str, Any]:
        from models.evaluation.evaluate import evaluate

        found = evaluate(
            evaluation_set=w.partition("evaluation", run.day),
            training_sets=history,
            tokenizer=tokenizer.path,
            model=model.path,
            reward=reward.path,
            pretrained=pretrained.path,
            production=load_release(open_store(w), production)[0] if production else None,
            out=out,
            seed=run.seed,
            progress=progress,
        )
        return {"production_release": production, **found}

    return run.step(
        "evaluate",
        inputs=[features, tokenizer, pretrained, model, reward],
        rooms=("models",),
        settings={"production": production, "history": partition_digests(history)},
        body=body,
    )
