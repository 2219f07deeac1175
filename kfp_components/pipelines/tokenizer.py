"""The tokenizer pipeline: semantic IDs for the items of the day."""

from kfp import dsl

from kfp_components.pipelines.wiring import imported, placed, reported
from kfp_components.resources import RESOURCES
from kfp_components.tokenize.component import tokenize


@dsl.pipeline(name="onerec-tokenizer", description="Semantic IDs for the items of a day")
def tokenizer(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    tables_uri: str,
    tables_digest: str,
    features_uri: str,
    features_digest: str,
    refit: bool,
):
    """The artifacts come from the features pipeline; their digests let KFP's cache see other contents. `refit`: fit the
    codebooks anew although they have not drifted."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    with reported("tokenizer", day=day, root=root, source=source):
        tables = imported("tables", tables_uri, tables_digest)
        features = imported("features", features_uri, features_digest)
        placed(tokenize(**run, **tables, **features, refit=refit), RESOURCES["tokenize"])
