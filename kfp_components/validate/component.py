"""KFP interface of the step `validate`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Output

from kfp_components.image import component


@component
def validate(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    tables: Input[Dataset],
    tables_digest: str,
    quality: Output[Dataset],
    metrics: Output[Metrics],
) -> str:
    """Great Expectations over the tables; critical failures stop the day. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.validate.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"tables": (tables, tables_digest)},
        output=quality,
        metrics=metrics,
    )
