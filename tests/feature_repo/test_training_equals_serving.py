"""Training equals serving: what a point-in-time join says of 1,000 users at a moment is what is served then."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.ingest import ingest
from datasets.partitions import PART, partition_path
from datasets.simulator import simulate
from feature_repo.build import build_features
from feature_repo.online import OnlineFeatures, UserFeatures
from feature_repo.services import SERVICE
from feature_repo.store import apply, materialize, open_store, quiet
from feature_repo.training_set import FEATURE_COLUMNS
from feature_repo.views import EVENT_VIEWS, VIEW_COLUMNS

LAST = date(2026, 1, 4)
USERS = 1000


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[Path, list[datetime]]:
    """Feature tables of four simulated days and the interval to materialize. The fourth day is written too."""
    base = tmp_path_factory.mktemp("simulated")
    simulate(base / "logs", days=4, end=LAST, users=2400, items=300, impressions=24_000, seed=4, progress=silent)
    interval: list[datetime] = []
    previous = None
    for day in (LAST - timedelta(days=1), LAST):
        found = ingest(source=base / "logs", day=day, lake=base / "lake", bootstrap=previous is None, progress=silent)
        previous = build_features(
            lake=base / "lake",
            features=base / "features",
            feature_store=base / "store",
            day=day.isoformat(),
            ingest=found,
            previous=previous,
            bootstrap=previous is None,
            progress=silent,
        )
        interval = interval or [datetime.fromisoformat(instant) for instant in previous["interval"]]
    return base, interval


def served(found: UserFeatures) -> dict[str, bytes]:
    """The features of an online read by their column in the training set, as bytes."""
    columns = {"static_codes": found.static, "seen_item_id": found.seen}
    for view, prefix in EVENT_VIEWS.items():
        columns |= dict(zip(VIEW_COLUMNS[view], getattr(found, prefix).T))
    return {name: np.ascontiguousarray(columns[name]).tobytes() for name in FEATURE_COLUMNS}


def joined(features: Path, store_folder: Path, users: list[int], moment: datetime) -> list[dict[str, bytes]]:
    frame = pd.DataFrame({"user_id": users, "event_timestamp": moment, "label_row": range(len(users))})
    store = open_store(features, store_folder)
    with quiet():
        service = store.get_feature_service(SERVICE)
        found = store.get_historical_features(entity_df=frame, features=service).to_arrow().sort_by("label_row")
    columns = [[np.array(x or [], np.int64).tobytes() for x in found[name].to_pylist()] for name in FEATURE_COLUMNS]
    return [dict(zip(FEATURE_COLUMNS, row)) for row in zip(*columns)]


def test_a_thousand_users(simulated, tmp_path, online_profile):
    base, (start, moment) = simulated
    features = base / "features"
    users = sorted({u for p in features.glob(f"user_seen/*/{PART}") for u in pq.read_table(p)["user_id"].to_pylist()})
    assert len(users) >= USERS
    where = {"features": features, "feature_store": tmp_path / "store", "profile": online_profile}
    apply(**where)
    materialize(**where, start=start, end=moment)
    online = [served(found) for found in OnlineFeatures(**where).read_many(users[:USERS])]
    offline = joined(features, base / "store", users[:USERS], moment)
    assert sum(any(row.values()) for row in offline) > 0.7 * USERS  # some came on the last day only
    assert online == offline
    later = joined(features, base / "store", users[:USERS], moment + timedelta(days=1))
    assert sum(a != b for a, b in zip(offline, later)) > 0.3 * USERS  # the last day is there, and was not served


def test_the_training_set_is_that_join(simulated):
    """The lists that the model is trained on are those of the join, in the types of the training partition."""
    base, (_, moment) = simulated
    table = pq.read_table(partition_path(base / "features" / "training", LAST) / PART)
    rows = [row for row in table.to_pylist() if row["event_timestamp"] == moment + timedelta(milliseconds=1)]
    assert len(rows) > 300 and table.schema.field("short_item_id").type == pa.list_(pa.int64())
    expected = joined(base / "features", base / "store", [r["user_id"] for r in rows], moment)
    for row, found in zip(rows, expected):
        for name in FEATURE_COLUMNS:
            if name != "static_codes" or found[name]:
                assert np.array(row[name], np.int64).tobytes() == found[name]
