"""The feature services, one a model version: what the model was trained with and must be served with.

A release names its service, and a server refuses a release whose service it does not know. A new model version that
wants other features gets a line in MODEL_VERSIONS, under a new name; the old line stays while a release names it.
"""

from __future__ import annotations

from feast import FeatureService, FeatureView

MODEL_VERSIONS: dict[str, tuple[str, ...]] = {
    "onerec_v1": ("user_static", "user_short", "user_positive", "user_lifelong", "user_seen"),
}
"""Feature views by name of the service. The version is part of the name."""

SERVICE = "onerec_v1"
"""The version that this code trains and serves."""


def feature_services(views: list[FeatureView]) -> list[FeatureService]:
    """A service for each model version, over all columns of its views."""
    by_name = {view.name: view for view in views}
    return [
        FeatureService(
            name=name, features=[by_name[view] for view in wanted], tags={"model_version": name.rpartition("_")[2]}
        )
        for name, wanted in MODEL_VERSIONS.items()
    ]
