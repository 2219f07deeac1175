"""KFP interface of the step `align`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def align(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    features: Input[Dataset],
    features_digest: str,
    tokenizer: Input[Model],
    tokenizer_digest: str,
    pretrained: Input[Model],
    pretrained_digest: str,
    reward: Input[Model],
    reward_digest: str,
    model: Output[Model],
    metrics: Output[Metrics],
) -> str:
    """The model after RSFT and ECPO. Returns the digest of the outcome."""
    from kfp_components.align.step import run
    from kfp_components.artifacts import run_component

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
            "pretrained": (pretrained, pretrained_digest),
            "reward": (reward, reward_digest),
        },
        output=model,
        metrics=metrics,
    )
