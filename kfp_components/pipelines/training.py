"""The training pipeline: pre-training, reward model, alignment, evaluation, and a published release."""

from kfp import dsl

from kfp_components.align.component import align
from kfp_components.evaluate.component import evaluate
from kfp_components.pipelines.wiring import imported, made, placed, reported, uncached
from kfp_components.pretrain.component import pretrain
from kfp_components.publish.component import publish
from kfp_components.resources import RESOURCES
from kfp_components.reward.component import reward


@dsl.pipeline(name="onerec-training", description="Pre-train, align, evaluate and publish the model of a day")
def training(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    tables_uri: str,
    tables_digest: str,
    quality_uri: str,
    quality_digest: str,
    features_uri: str,
    features_digest: str,
    tokenizer_uri: str,
    tokenizer_digest: str,
):
    """The training steps may be cached by KFP, since every input goes in with its digest; publish never is."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    with reported("training", day=day, root=root, source=source):
        tables = imported("tables", tables_uri, tables_digest)
        quality = imported("quality", quality_uri, quality_digest)
        features = imported("features", features_uri, features_digest)
        tokenizer = imported("tokenizer", tokenizer_uri, tokenizer_digest, dsl.Model)

        pretrained = made("pretrained", placed(pretrain(**run, **features, **tokenizer), RESOURCES["pretrain"]))
        scores = made("reward", placed(reward(**run, **features, **tokenizer), RESOURCES["reward"]))
        model = made("model", placed(align(**run, **features, **tokenizer, **pretrained, **scores), RESOURCES["align"]))
        evaluation = made(
            "evaluation",
            placed(evaluate(**run, **features, **tokenizer, **pretrained, **model, **scores), RESOURCES["evaluate"]),
        )
        uncached(
            placed(
                publish(**run, **tables, **quality, **features, **tokenizer, **model, **scores, **evaluation),
                RESOURCES["publish"],
            )
        )
