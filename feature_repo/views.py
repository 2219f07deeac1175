"""The feature views: what is known of a user at an instant, as lists of int64, oldest first.

    views = feature_views(Path("var/simulated/features"), LocalProfile())

Every column is declared here, so that Feast infers nothing from files. Views never expire (no ttl): the state of a
user who was away for a month is still their state. An event pathway is seven parallel lists, one a field of an event.

Five views are written day by day (VIEW_COLUMNS). A sixth, `user_live`, holds the events that were pushed since
(feature_repo/push.py); it belongs to no training set, and reading online lays it over the others.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from feast import FeatureView, Field
from feast.types import Array, Int64

from datasets.contract import EVENT_FIELDS
from feature_repo.entities import USER
from feature_repo.profiles import Profile
from feature_repo.sources import live_source

EVENT_VIEWS = {"user_short": "short", "user_positive": "positive", "user_lifelong": "lifelong"}
"""View name to the prefix of its columns."""

VIEW_COLUMNS: dict[str, tuple[str, ...]] = {
    "user_static": ("static_codes",),
    **{view: tuple(f"{prefix}_{field}" for field in EVENT_FIELDS) for view, prefix in EVENT_VIEWS.items()},
    "user_seen": ("seen_item_id",),
}
"""The feature columns of each view, in order. Each is a list of int64."""

LIVE_VIEW = "user_live"
LIVE_COLUMNS = tuple(f"live_{field}" for field in EVENT_FIELDS)

SHORT_LEN = 20
"""Events of the short-term pathway, tables and live events together: the default of the pathways' own setting."""

LIVE_LEN = 1024
"""The newest live events that are kept of a user: more than anybody is shown before the tables catch up."""

_DESCRIPTION = {
    "user_static": "one code a column of the users table",
    "user_short": "the newest events, whatever their feedback",
    "user_positive": "the newest events with positive feedback",
    "user_lifelong": "the whole history, compressed to representative events",
    "user_seen": "every item the user was ever shown: never recommended again",
    "user_live": "events pushed since the tables were written, newest last",
}


def feature_views(features: Path, profile: Profile) -> list[FeatureView]:
    """All views over the tables below `features`, the live one last."""
    sources = {name: profile.source(features, name) for name in (*VIEW_COLUMNS, LIVE_VIEW)}
    sources[LIVE_VIEW] = live_source(sources[LIVE_VIEW])
    return [
        FeatureView(
            name=name,
            entities=[USER],
            ttl=timedelta(0),
            schema=[Field(name="user_id", dtype=Int64), *(Field(name=c, dtype=Array(Int64)) for c in columns)],
            source=sources[name],
            description=_DESCRIPTION[name],
        )
        for name, columns in {**VIEW_COLUMNS, LIVE_VIEW: LIVE_COLUMNS}.items()
    ]
