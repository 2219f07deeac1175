"""KFP interface of the step `gate`; what it does is in step.py."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def gate(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release: Input[Model],
    release_digest: str,
    quality: Input[Dataset],
    quality_digest: str,
    evaluation: Input[Dataset],
    evaluation_digest: str,
    check: Input[Dataset],
    check_digest: str,
    decision: Output[Artifact],
    metrics: Output[Metrics],
) -> str:
    """The gates' decision about the release. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.gate.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={
            "release": (release, release_digest),
            "quality": (quality, quality_digest),
            "evaluation": (evaluation, evaluation_digest),
            "check": (check, check_digest),
        },
        output=decision,
        metrics=metrics,
    )
