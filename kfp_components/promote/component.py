"""KFP interface of the step `promote`; what it does is in step.py."""

from kfp.dsl import Artifact, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def promote(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release: Input[Model],
    release_digest: str,
    decision: Input[Artifact],
    decision_digest: str,
    servers: str,
    moved: Output[Artifact],
    metrics: Output[Metrics],
) -> str:
    """The channels, moved by the gates' decision and the rollout. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.promote.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"release": (release, release_digest), "decision": (decision, decision_digest)},
        output=moved,
        metrics=metrics,
        servers=servers,
    )
