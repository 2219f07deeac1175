"""KFP interface of the step `report`; what it does is in step.py."""

from kfp.dsl import HTML, Artifact, Input, Output

from kfp_components.image import component


@component
def report(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    decision: Input[Artifact],
    decision_digest: str,
    page: Output[HTML],
) -> str:
    """The page a person reads about the day. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.report.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"decision": (decision, decision_digest)},
        output=page,
        page="report.html",
    )
