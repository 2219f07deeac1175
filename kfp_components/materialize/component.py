"""KFP interface of the step `materialize`; what it does is in step.py."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from kfp_components.image import component


@component
def materialize(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    features: Input[Dataset],
    features_digest: str,
    online: Output[Artifact],
    metrics: Output[Metrics],
) -> str:
    """The features of the day into the online store. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.materialize.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"features": (features, features_digest)},
        output=online,
        metrics=metrics,
    )
