"""Where the pathway tables lie, and the source through which live events come in.

The day partitions `<features>/<view>/dt=D/part-0.parquet` of a view are one table to Feast. What kind of source reads
them (a file, Spark) is the profile's business: feature_repo/profiles.py.
"""

from __future__ import annotations

from pathlib import Path

from feast import PushSource
from feast.data_source import DataSource

TIMESTAMP = "event_timestamp"
LIVE_SOURCE = "live_events"


def partitions_of(features: Path, view: str) -> Path:
    """The folder of a view's partitions, absolute: a relative one would be resolved where the process happens to be."""
    return features.resolve() / view


def live_source(batch: DataSource) -> PushSource:
    """What a client pushes into. Feast wants a batch source beside it; nothing is ever written there."""
    return PushSource(name=LIVE_SOURCE, batch_source=batch)
