"""The features pipeline: logs to validated tables, the four pathways, and the online store."""

from kfp import dsl

from kfp_components.ingest.component import ingest
from kfp_components.materialize.component import materialize
from kfp_components.pathways.component import pathways
from kfp_components.pipelines.wiring import made, placed, reported, uncached
from kfp_components.resources import RESOURCES
from kfp_components.validate.component import validate


@dsl.pipeline(name="onerec-features", description="Logs of a day to validated tables, pathways and online features")
def features(day: str, root: str, source: str, seed: int, fresh_from: str, data: str, data_digest: str):
    """`data_digest` covers the files of `data`. Nothing here is cached by KFP: every step writes into the lake."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    with reported("features", day=day, root=root, source=source):
        tables = made(
            "tables", uncached(placed(ingest(**run, data=data, data_digest=data_digest), RESOURCES["ingest"]))
        )
        quality = made("quality", uncached(placed(validate(**run, **tables), RESOURCES["validate"])))
        built = made("features", uncached(placed(pathways(**run, **tables, **quality), RESOURCES["pathways"])))
        uncached(placed(materialize(**run, **built), RESOURCES["materialize"]))
