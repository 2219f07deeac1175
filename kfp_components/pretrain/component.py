"""KFP interface of the step `pretrain`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def pretrain(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    features: Input[Dataset],
    features_digest: str,
    tokenizer: Input[Model],
    tokenizer_digest: str,
    pretrained: Output[Model],
    metrics: Output[Metrics],
) -> str:
    """The model after next-token prediction on the day. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.pretrain.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={
            "features": (features, features_digest),
            "tokenizer": (tokenizer, tokenizer_digest),
        },
        output=pretrained,
        metrics=metrics,
    )
