"""The feature service: the features that a model was trained with and must be served with. A release names it."""

from __future__ import annotations

from feast import FeatureService, FeatureView

SERVICE = "onerec_v1"


def onerec_v1(views: list[FeatureView]) -> FeatureService:
    """All columns of all views. Another set of columns is another service, under another name."""
    return FeatureService(name=SERVICE, features=list(views), description="the four pathways and the seen items")
