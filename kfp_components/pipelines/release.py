"""The release pipeline: serve the published release for real, judge and promote it, and report the day."""

from kfp import dsl

from kfp_components.pipelines.wiring import imported, made, placed, uncached
from kfp_components.promote.component import promote
from kfp_components.report.component import report
from kfp_components.resources import RESOURCES
from kfp_components.serve.component import serve


@dsl.pipeline(name="onerec-release", description="Serve, judge, promote and report the release of a day")
def release(
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
    """Every step here acts on the world (a server, the channels, the run's folder), so KFP caches none."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    published = imported("release", release_uri, release_digest, dsl.Model)
    quality = imported("quality", quality_uri, quality_digest)
    features = imported("features", features_uri, features_digest)
    online = imported("online", online_uri, online_digest, dsl.Artifact)
    evaluation = imported("evaluation", evaluation_uri, evaluation_digest)

    check = made("check", uncached(placed(serve(**run, **published, **features, **online), RESOURCES["serve"])))
    decision = made(
        "decision",
        uncached(placed(promote(**run, **published, **quality, **evaluation, **check), RESOURCES["promote"])),
    )
    uncached(placed(report(**run, **decision), RESOURCES["report"]))
