"""KuaiRand-Pure: evaluation rows for the protocol's users whom the pipeline's rows leave out.

    complete(Path("prepared/evaluation/dt=2022-05-05.parquet"), read_day(logs, 20220506), features, "2022-05-05")

The table's day is the log's `date`; the pipeline's rows of a day leave out an impression whose clock lies before that
day's midnight, and so a user who has no other unseen positive (20 of 3,214 on 2022-05-06). A server answers them as
anybody else, from the newest features it has of them, and so does the row made here. What is wanted is not among these
features: else `held_out` would count it as seen, and no such user is lost (3,214 rows with one).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.quality.kuairand import Day
from models.evaluation.evaluate import held_out
from models.onerec.features import POSITIVE_MASK

VIEWS = ("user_static", "user_short", "user_positive", "user_lifelong", "user_seen")
POSITIVE = POSITIVE_MASK & -POSITIVE_MASK  # one of its bits


def complete(file: Path, day: Day, features: Path, last: str) -> int:
    """Add the missing users' rows to the evaluation file of the day after `last`; how many there were.

    A user of whom no feature is known gets none: a miss, as for every model that must know a user.
    """
    rows = pq.read_table(file)
    named = rows["user_id"].to_numpy()
    missing = np.setdiff1d(day.user_id, named[held_out(file)[0]])
    if not len(missing):
        return 0
    newest = {view: _newest(features / view, missing, last) for view in VIEWS}
    known = np.array([u for u in missing if all(u in found for found in newest.values())], np.int64)
    if not len(known):
        return 0
    wanted = [day.items[day.wanted[i]].tolist() for i in np.searchsorted(day.user_id, known)]
    columns: dict[str, list] = {"user_id": known.tolist(), "item_id": wanted}
    columns["label"] = [[POSITIVE] * len(items) for items in wanted]
    for name in ("label_known", "play_ms", "duration_ms"):  # of the day itself: nothing ranks by them
        columns[name] = [[0] * len(items) for items in wanted]
    for found in newest.values():
        for u in known:
            for name, value in found[u].items():
                columns.setdefault(name, []).append(value)
    columns["event_timestamp"] = [rows["event_timestamp"][0].as_py()] * len(known)
    made = pa.table([pa.array(columns[f.name], f.type) for f in rows.schema], schema=rows.schema)
    others = rows.filter(pc.invert(pc.is_in(rows["user_id"], pa.array(known))))
    staged = file.with_suffix(".part")
    pq.write_table(pa.concat_tables([others, made]), staged)
    os.replace(staged, file)
    return len(known)


def _newest(view: Path, users: np.ndarray, last: str) -> dict[int, dict]:
    """Each user's newest row of a feature view up to the day `last`, without its key."""
    found: dict[int, dict] = {}
    for folder in sorted(view.glob("dt=*")):
        if folder.name <= f"dt={last}":
            for row in pq.read_table(folder, filters=[("user_id", "in", users.tolist())]).to_pylist():
                found[row["user_id"]] = {k: v for k, v in row.items() if k not in ("user_id", "event_timestamp", "dt")}
    return found
