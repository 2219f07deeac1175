"""KFP interface of the step `reward`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def reward(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    features: Input[Dataset],
    features_digest: str,
    tokenizer: Input[Model],
    tokenizer_digest: str,
    reward: Output[Model],
    metrics: Output[Metrics],
) -> str:
    """The P-Score model after the day. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.reward.step import run

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
        output=reward,
        metrics=metrics,
    )
