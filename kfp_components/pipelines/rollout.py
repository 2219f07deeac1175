"""The rollout pipelines: shadow and canary let the candidate meet traffic, promote moves production.

Each is a pipeline of its own, so that Airflow shows where a release is and a person may stop between two of them.
"""

from kfp import dsl

from kfp_components.canary.component import canary as canary_step
from kfp_components.pipelines.wiring import imported, placed, reported, uncached
from kfp_components.promote.component import promote as promote_step
from kfp_components.report.component import report
from kfp_components.resources import RESOURCES
from kfp_components.shadow.component import shadow as shadow_step


def _judged(release_uri, release_digest, decision_uri, decision_digest) -> dict:
    """A release and what the gates said of it."""
    release = imported("release", release_uri, release_digest, dsl.Model)
    return release | imported("decision", decision_uri, decision_digest, dsl.Artifact)


@dsl.pipeline(name="onerec-shadow", description="Compare the candidate's answers with production's on real requests")
def shadow(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release_uri: str,
    release_digest: str,
    decision_uri: str,
    decision_digest: str,
    servers: str,
    percents: str,
    answers: int,
    hours: float,
):
    """`servers`: addresses of their metrics; `answers` requests at each of the `percents`, within `hours`."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    meet = {"servers": servers, "percents": percents, "answers": answers, "hours": hours}
    with reported("shadow", day=day, root=root, source=source):
        judged = _judged(release_uri, release_digest, decision_uri, decision_digest)
        uncached(placed(shadow_step(**run, **judged, **meet), RESOURCES["shadow"]))


@dsl.pipeline(name="onerec-canary", description="Let the candidate answer a growing share of the users")
def canary(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release_uri: str,
    release_digest: str,
    decision_uri: str,
    decision_digest: str,
    servers: str,
    percents: str,
    answers: int,
    hours: float,
):
    """As shadow; the candidate's answers are shown."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    meet = {"servers": servers, "percents": percents, "answers": answers, "hours": hours}
    with reported("canary", day=day, root=root, source=source):
        judged = _judged(release_uri, release_digest, decision_uri, decision_digest)
        uncached(placed(canary_step(**run, **judged, **meet), RESOURCES["canary"]))


@dsl.pipeline(name="onerec-promote", description="Move production by the gates and the rollout, and report the day")
def promote(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
    release_uri: str,
    release_digest: str,
    decision_uri: str,
    decision_digest: str,
    servers: str,
):
    """`servers` empty: no traffic to meet, the gates alone decide."""
    run = {"day": day, "root": root, "source": source, "seed": seed, "fresh_from": fresh_from}
    with reported("promote", day=day, root=root, source=source):
        judged = _judged(release_uri, release_digest, decision_uri, decision_digest)
        moved = uncached(placed(promote_step(**run, **judged, servers=servers), RESOURCES["promote"]))
        decision = {"decision": moved.outputs["moved"], "decision_digest": moved.outputs["Output"]}
        uncached(placed(report(**run, **decision), RESOURCES["report"]))
