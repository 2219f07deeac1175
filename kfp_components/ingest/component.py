"""KFP interface of the step `ingest`; what it does is in step.py."""

from kfp.dsl import Dataset, Metrics, Output

from kfp_components.image import component


@component
def ingest(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    data: str,
    data_digest: str,
    tables: Output[Dataset],
    metrics: Output[Metrics],
) -> str:
    """The logs of the day as contract tables. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.ingest.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={},
        output=tables,
        metrics=metrics,
        data=data,
    )
