"""KFP interface of the step `serve`; what it does is in step.py."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def serve(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release: Input[Model],
    release_digest: str,
    features: Input[Dataset],
    features_digest: str,
    online: Input[Artifact],
    online_digest: str,
    check: Output[Dataset],
    metrics: Output[Metrics],
) -> str:
    """A real Triton server on the release answers ten users. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.serve.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={
            "release": (release, release_digest),
            "features": (features, features_digest),
            "online": (online, online_digest),
        },
        output=check,
        metrics=metrics,
    )
