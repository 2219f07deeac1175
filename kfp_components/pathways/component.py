"""KFP interface of the step `pathways`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Output

from kfp_components.image import component


@component
def pathways(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    tables: Input[Dataset],
    tables_digest: str,
    quality: Input[Dataset],
    quality_digest: str,
    features: Output[Dataset],
    metrics: Output[Metrics],
) -> str:
    """The four user pathways, registered in Feast, and the training sets. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.pathways.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"tables": (tables, tables_digest), "quality": (quality, quality_digest)},
        output=features,
        metrics=metrics,
    )
