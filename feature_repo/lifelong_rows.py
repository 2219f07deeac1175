"""The rows of the lifelong pathway, clustered anew only for users with enough new events.

    lifelong = LifelongRows(engine, features, vector_ID, config)
    rows, state = lifelong.of(past, day)

Beside `user_lifelong/dt=D` lies `lifelong_state/dt=D`: of each of its users the number of events when they were last
clustered. On a later day a user whose history grew by `redo_events` and by `redo_share` since then is clustered over
the whole of it. Anybody else keeps the row they had, and each event since becomes a group of its own behind it.
Only days before D are read, so that running a day again gives the same rows.
"""

from __future__ import annotations

import dataclasses
from datetime import date
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.contract import EVENT_FIELDS
from datasets.partitions import partition_days, partition_path
from feature_repo import transforms
from feature_repo.config import PathwaysConfig
from feature_repo.engine import Engine
from feature_repo.lifelong import MAX_EVENTS, compress

STATE = "lifelong_state"
_COLUMNS = ("user_id", "ord", *EVENT_FIELDS)
_CARRIED_ORD = -(1 << 60)  # the rows of before come before every event


@dataclasses.dataclass(frozen=True)
class LifelongRows:
    """What clustering needs beside the events. `device`: of PyTorch; "cuda" clusters on a GPU."""

    engine: Engine
    features: Path
    vector_ID: np.ndarray
    config: PathwaysConfig
    device: str = "cpu"

    def of(self, past: ir.Table, day: date) -> tuple[pa.Table, pa.Table]:
        """(rows, state) of the users of `past`, the events known at an instant of `day`; sorted by user, no stamps.

        rows: user_id and seven lists. state: user_id and `clustered`, how many events the clusters stand for.
        """
        counted = self.engine.arrow(past.group_by("user_id").agg(events=past.count()).order_by("user_id"))
        user_U, events_U = counted["user_id"].to_numpy(), counted["events"].to_numpy()
        kept = self._state_before(past, day)
        at_K = np.searchsorted(user_U, kept["user_id"].to_numpy())
        clustered_K = kept["clustered"].to_numpy()
        grown_K = events_U[at_K] - clustered_K
        kept = kept.filter(
            pa.array((grown_K < self.config.redo_events) | (grown_K < self.config.redo_share * clustered_K))
        )
        redo_U = ~np.isin(user_U, kept["user_id"].to_numpy())
        clustered_U = events_U.copy()
        clustered_U[~redo_U] = kept["clustered"].to_numpy()
        parts = []
        if redo_U.any():
            parts.append(self._clustered(past, user_U[redo_U]))
        if len(kept):
            parts += [self._carried(kept), self._since(past, kept)]
        rows = transforms.newest(ibis.union(*parts) if len(parts) > 1 else parts[0], self.config.lifelong_len)
        table = self.engine.lists(rows, transforms.event_columns("lifelong"))
        return table, pa.table({"user_id": user_U, "clustered": clustered_U})

    def _state_before(self, past: ir.Table, day: date) -> pa.Table:
        """The newest state of each user before `day`, sorted by user: user_id, clustered, dt, until_ms."""
        days = [d for d in partition_days(self.features / STATE) if d < day]
        if not days:
            empty = {"user_id": pa.int64(), "clustered": pa.int64(), "dt": pa.date32(), "until_ms": pa.int64()}
            return pa.schema(list(empty.items())).empty_table()
        state = self.engine.read([partition_path(self.features / STATE, d) for d in days]).semi_join(past, "user_id")
        ranked = state.mutate(back=ibis.row_number().over(group_by="user_id", order_by=state.dt.desc()))
        newest = ranked.filter(ranked.back == 0)
        until = self.engine.unix_ms(newest.event_timestamp)
        return self.engine.arrow(newest.select("user_id", "clustered", "dt", until_ms=until).order_by("user_id"))

    def _clustered(self, past: ir.Table, users: np.ndarray) -> ir.Table:
        """One event a cluster, of users whose whole history is clustered."""
        whole = past.semi_join(self.engine.table("users", pa.table({"user_id": users})), "user_id")
        longest = transforms.newest(whole, MAX_EVENTS)
        flat = self.engine.arrow(longest.select(*_COLUMNS, "item_row").order_by("user_id", "ord", "item_id"))
        group_N, representative_G = compress(
            flat["user_id"].to_numpy(), flat["item_row"].to_numpy(), self.vector_ID, device=self.device
        )
        grouped = flat.select(["ord", "time_s", "play_ms", "duration_ms"]).append_column("grp", pa.array(group_N))
        chosen = flat.select(["user_id", "item_id", "author_id", "tag", "label"]).take(pa.array(representative_G))
        chosen = chosen.append_column("grp", pa.array(np.arange(len(representative_G))))
        tables = self.engine.table("grouped", grouped), self.engine.table("chosen", chosen)
        return transforms.cluster_events(*tables).select(*_COLUMNS)

    def _carried(self, kept: pa.Table) -> ir.Table:
        """The rows of before of the users that are not clustered anew, as events in the same order."""
        columns = list(transforms.event_columns("lifelong"))
        days = sorted(set(kept["dt"].to_pylist()))
        rows = self.engine.read([partition_path(self.features / "user_lifelong", d) for d in days])
        rows = rows.mutate(until_ms=self.engine.unix_ms(rows.event_timestamp))
        key = ["user_id", "until_ms"]
        wanted = rows.semi_join(self.engine.table("kept", kept.select(key)), key)
        table = self.engine.arrow(wanted.select("user_id", *columns))
        lists = {name: table[name].combine_chunks() for name in columns}
        length = lists[columns[0]].value_lengths()
        user = np.repeat(table["user_id"].to_numpy(), length.to_numpy(zero_copy_only=False))
        flat = {field: lists[name].flatten() for name, field in transforms.event_columns("lifelong").items()}
        carried = pa.table({"user_id": user, "ord": _CARRIED_ORD + np.arange(len(user)), **flat})
        return self.engine.table("carried", carried.select(list(_COLUMNS)))

    def _since(self, past: ir.Table, kept: pa.Table) -> ir.Table:
        """The events that the row of before does not hold: of a later log day, or not before its instant."""
        ends = kept.select(["user_id", "until_ms"]).append_column("last_dt", pc.cast(kept["dt"], pa.date32()))
        state = self.engine.table("ends", ends)
        joined = past.join(state, "user_id")
        return joined.filter((joined.dt > joined.last_dt) | (joined.ord >= joined.until_ms)).select(*_COLUMNS)
