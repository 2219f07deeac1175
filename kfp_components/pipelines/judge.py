"""The gate pipeline: serve the published release for real, and judge it."""

from kfp import dsl

from kfp_components.gate.component import gate
from kfp_components.pipelines.wiring import imported, made, placed, reported, uncached
from kfp_components.resources import RESOURCES
from kfp_components.serve.component import serve


@dsl.pipeline(name="onerec-gate", description="Serve and judge the release of a day")
def judge(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release_uri: str,
    release_digest: str,
    quality_uri: str,
    quality_digest: str,
    features_uri: str,
    features_digest: str,
    online_uri: str,
    online_digest: str,
    evaluation_uri: str,
    evaluation_digest: str,
):
    """Every step here acts on the world (a server, the channels), so KFP caches none."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    with reported("gate", day=day, root=root, source=source):
        published = imported("release", release_uri, release_digest, dsl.Model)
        quality = imported("quality", quality_uri, quality_digest)
        features = imported("features", features_uri, features_digest)
        online = imported("online", online_uri, online_digest, dsl.Artifact)
        evaluation = imported("evaluation", evaluation_uri, evaluation_digest)
        check = made("check", uncached(placed(serve(**run, **published, **features, **online), RESOURCES["serve"])))
        uncached(placed(gate(**run, **published, **quality, **evaluation, **check), RESOURCES["gate"]))
