"""Users of the log's day without a row get one of their newest features; a user nobody knows stays a miss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from benchmarks.quality.kuairand import Day
from benchmarks.quality.kuairand_absent import VIEWS, complete
from models.evaluation.evaluate import held_out
from models.onerec.features import POSITIVE_MASK

LIST = pa.list_(pa.int64())
SCHEMA = pa.schema(
    {"user_id": pa.int64(), "event_timestamp": pa.timestamp("ms", "UTC")}
    | dict.fromkeys(("item_id", "label", "label_known", "play_ms", "duration_ms"), LIST)
    | dict.fromkeys(("static_codes", "short_item_id", "positive_item_id", "lifelong_item_id", "seen_item_id"), LIST)
)


def _features(root: Path, day: str, users: list[int], value: int) -> None:
    columns = ["static_codes", "short_item_id", "positive_item_id", "lifelong_item_id", "seen_item_id"]
    for view, column in zip(VIEWS, columns):
        (root / view / f"dt={day}").mkdir(parents=True)
        table = pa.table({"user_id": users, "event_timestamp": [0] * len(users), column: [[value]] * len(users)})
        pq.write_table(table, root / view / f"dt={day}" / "part-0.parquet")


def test_those_left_out_are_asked_with_what_was_known_of_them_that_day(tmp_path: Path) -> None:
    row = {name: [[1]] * 2 for name in SCHEMA.names}
    row |= {"user_id": [1, 2], "event_timestamp": [86_400_000] * 2, "item_id": [[10], [11]], "seen_item_id": [[5]] * 2}
    row["label"] = [[POSITIVE_MASK], [0]]  # user 2 has a row, but nothing that is wanted
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table(row, schema=SCHEMA), file)
    _features(tmp_path / "features", "2022-05-04", [2, 3], value=4)
    _features(tmp_path / "features", "2022-05-05", [3], value=6)
    _features(tmp_path / "features", "2022-05-06", [2, 3, 4], value=9)  # of the day that is asked for
    none = sp.csr_matrix((5, 3))
    day = Day(
        items=np.array([10, 11, 12]),
        user_id=np.array([1, 2, 3, 4]),
        positive_UN=none,
        shown_UN=none,
        recent_N=np.zeros(3),
        rows=np.arange(4),
        seen=[np.array([], int)] * 4,
        wanted=[np.array([0]), np.array([1, 2]), np.array([2]), np.array([0])],
    )
    assert complete(file, day, tmp_path / "features", "2022-05-05") == 2  # of user 4 nothing was known
    rows = {r["user_id"]: r for r in pq.read_table(file).to_pylist()}
    assert sorted(rows) == [1, 2, 3] and rows[1]["item_id"] == [10]
    assert (rows[2]["short_item_id"], rows[3]["short_item_id"]) == ([4], [6])
    assert rows[3]["event_timestamp"] == rows[1]["event_timestamp"]
    asked, wanted, seen = held_out(file)
    assert sorted(map(sorted, wanted)) == [[10], [11, 12], [12]] and [6] in [s.tolist() for s in seen]
    assert len(asked) == 3 and complete(file, day, tmp_path / "features", "2022-05-05") == 0
