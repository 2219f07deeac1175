"""KFP interface of the step `publish`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Model, Output

from kfp_components.image import component


@component
def publish(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    tables: Input[Dataset],
    tables_digest: str,
    quality: Input[Dataset],
    quality_digest: str,
    features: Input[Dataset],
    features_digest: str,
    tokenizer: Input[Model],
    tokenizer_digest: str,
    model: Input[Model],
    model_digest: str,
    reward: Input[Model],
    reward_digest: str,
    evaluation: Input[Dataset],
    evaluation_digest: str,
    release: Output[Model],
) -> str:
    """One immutable release of everything the day made. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.publish.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={
            "tables": (tables, tables_digest),
            "quality": (quality, quality_digest),
            "features": (features, features_digest),
            "tokenizer": (tokenizer, tokenizer_digest),
            "model": (model, model_digest),
            "reward": (reward, reward_digest),
            "evaluation": (evaluation, evaluation_digest),
        },
        output=release,
    )
