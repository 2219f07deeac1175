"""KFP interface of the step `canary`; what it does is in step.py."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def canary(
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
    percents: str,
    answers: int,
    hours: float,
    traffic: Output[Dataset],
    metrics: Output[Metrics],
) -> str:
    """The candidate answers a growing share of the users. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.canary.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"release": (release, release_digest), "decision": (decision, decision_digest)},
        output=traffic,
        metrics=metrics,
        servers=servers,
        percents=percents,
        answers=answers,
        hours=hours,
    )
