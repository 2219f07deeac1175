"""KFP interface of the step `evaluate`; what it does is in step.py."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from kfp_components.image import component


@component
def evaluate(
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
    model: Input[Model],
    model_digest: str,
    reward: Input[Model],
    reward_digest: str,
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
) -> str:
    """Recall and NDCG on the next day, beside floors and production. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.evaluate.step import run

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
            "model": (model, model_digest),
            "reward": (reward, reward_digest),
        },
        output=evaluation,
        metrics=metrics,
    )
