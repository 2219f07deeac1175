"""The one entity of the feature store: a user, joined by `user_id`."""

from __future__ import annotations

from feast import Entity, ValueType

USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64, description="a user of the recommender")
