"""KFP interface of the step `tokenize`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def tokenize(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    tables: Input[Dataset],
    tables_digest: str,
    features: Input[Dataset],
    features_digest: str,
    refit: bool,
    tokenizer: Output[Model],
    metrics: Output[Metrics],
) -> str:
    """Semantic IDs, codebooks and trie. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.tokenize.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={"tables": (tables, tables_digest), "features": (features, features_digest)},
        output=tokenizer,
        metrics=metrics,
        refit=refit,
    )
