"""The four user pathways as tables: what each user had done at the end of a log day, and what they were shown that day.

    pathways = Pathways(lake=Path("var/simulated/lake"), features=Path("var/simulated/features"))
    pathways.write_day(date(2022, 5, 5))

Partitions `<view>/dt=D/part-0.parquet`, one row a user whose history changed on D, stamped with the end of D; lists are
oldest first, -1 is an unknown number, `time_s` 0 an unknown clock. A source's untimed history becomes `HISTORY_SLICES`
pseudo-days before the first log day: their order is known, their clock is not, and `time_s` says so.

Views: user_static, user_short, user_positive, user_lifelong, user_seen. `labels`: the impressions of a user and day.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa

from datasets import contract
from datasets.partitions import partition_days, partition_path, write_partition
from feature_repo.lifelong import compress, content_vectors

SHORT_LEN = 20
POSITIVE_LEN = 256
LIFELONG_LEN = 2000
STATIC_BUCKETS = 8192
HISTORY_SLICES = 3
VIEWS = ("user_static", "user_short", "user_positive", "user_lifelong", "user_seen")
LABEL_COLUMNS = ("item_id", "label", "label_known", "play_ms", "duration_ms")
_TIMESTAMP = pa.timestamp("ms", "UTC")


class Pathways:
    """The lake of one source loaded once, and its feature partitions written day by day. Close by leaving the block."""

    def __init__(
        self, *, lake: Path, features: Path, day: date, timezone: str = "UTC", since: date | None = None
    ) -> None:
        """Read all impressions up to `day` (and the day after, for evaluation), the items and users of `day`.

        `since`: the first day whose partitions will be written; users without an impression from then on are not read.
        """
        self.features, self.day, self.zone = features, day, ZoneInfo(timezone)
        self.con = duckdb.connect(config={"memory_limit": "3GB", "threads": "2"})
        self._load_items(partition_path(lake / "items", day))
        self.days = [d for d in partition_days(lake / "impressions") if d <= day + timedelta(days=1)]
        self._load_events(lake, since)
        self._load_static(partition_path(lake / "users", day))

    def __enter__(self) -> Pathways:
        return self

    def __exit__(self, *exception: object) -> None:
        self.con.close()

    def end_of(self, day: date) -> datetime:
        """The instant a log day ends, in UTC."""
        return datetime.combine(day + timedelta(days=1), time(), self.zone).astimezone(UTC)

    def history_days(self) -> list[date]:
        """The pseudo-days of the untimed history, oldest first; none without one."""
        rows = self.con.execute("SELECT DISTINCT dt FROM events WHERE history ORDER BY dt").fetchall()
        return [row[0] for row in rows]

    def held_back_from(self, day: date, share: float = 0.2) -> datetime:
        """The full hour after which about `share` of a day's impressions happened: held back when D+1 is missing."""
        ((second,),) = self.con.execute(
            "SELECT quantile_disc(time_s, ?) FROM events WHERE dt = ? AND NOT history", [1 - share, day]
        ).fetchall()
        return datetime.fromtimestamp(second // 3600 * 3600, UTC)

    def write_views(self, day: date, *, cutoff: datetime | None = None) -> list[Path]:
        """The five views of the users who were shown something on `day`; with a cutoff also as of that instant."""
        instants: list[tuple[datetime, str, dict[str, Any]]] = [(self.end_of(day), "dt <= $day", {"day": day})]
        if cutoff:
            before = "(dt < $day OR (dt = $day AND time_s < $cut))"
            instants.insert(0, (cutoff, before, {"day": day, "cut": int(cutoff.timestamp())}))
        parts: dict[str, list[pa.Table]] = {view: [] for view in VIEWS}
        for instant, condition, values in instants:
            # At the cutoff everybody of the day gets a row: also users who come only after it need their context then.
            self.con.execute(
                f"""CREATE OR REPLACE TEMP TABLE past AS
                SELECT e.*, row_number() OVER (PARTITION BY user_id ORDER BY ord DESC) AS back FROM events e
                SEMI JOIN (SELECT user_id FROM events WHERE dt = $day) USING (user_id) WHERE {condition}""",
                values,
            )
            stamp = pa.scalar(instant, _TIMESTAMP)
            for view, table in self._views().items():
                stamps = pa.repeat(stamp, len(table))
                parts[view].append(table.add_column(1, pa.field("event_timestamp", _TIMESTAMP), stamps))
        written = []
        for view, tables in parts.items():
            path = partition_path(self.features / view, day)
            write_partition(
                path, pa.concat_tables(tables).sort_by([("user_id", "ascending"), ("event_timestamp", "ascending")])
            )
            written.append(path)
        return written

    def write_labels(
        self, folder: str, day: date, windows: Iterable[tuple[datetime, datetime | None, datetime | None, date]]
    ) -> Path:
        """What users were shown: one row a user and window (instant of the context, from, to, log day), as lists.

        The row is stamped one millisecond after the instant, so that a point-in-time join finds the snapshot of it.
        """
        parts = []
        for instant, start, end, log_day in windows:
            bounds = "".join(
                f" AND time_s {op} {int(at.timestamp())}" for op, at in ((">=", start), ("<", end)) if at is not None
            )
            lists = ", ".join(f"list({c} ORDER BY ord) AS {c}" for c in LABEL_COLUMNS)
            table = self._arrow(
                f"SELECT user_id, {lists} FROM events WHERE dt = $day{bounds} GROUP BY user_id ORDER BY user_id",
                day=log_day,
            )
            stamps = pa.repeat(pa.scalar(instant + timedelta(milliseconds=1), _TIMESTAMP), len(table))
            parts.append(table.add_column(1, pa.field("event_timestamp", _TIMESTAMP), stamps))
        path = partition_path(self.features / folder, day)
        write_partition(
            path, pa.concat_tables(parts).sort_by([("user_id", "ascending"), ("event_timestamp", "ascending")])
        )
        return path

    def _views(self) -> dict[str, pa.Table]:
        """The views of the temporary table `past`, without their time stamp."""
        users = self._arrow(
            "SELECT user_id, codes AS static_codes FROM static SEMI JOIN past USING (user_id) ORDER BY user_id"
        )
        positive = (
            "SELECT * FROM past WHERE positive QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY ord DESC) <= "
        )
        return {
            "user_static": users,
            "user_short": self._lists("short", f"SELECT * FROM past WHERE back <= {SHORT_LEN}"),
            "user_positive": self._lists("positive", f"{positive}{POSITIVE_LEN}"),
            "user_lifelong": self._lifelong(),
            "user_seen": self._arrow(
                "SELECT user_id, list(item_id ORDER BY ord) AS seen_item_id FROM past GROUP BY 1 ORDER BY 1"
            ),
        }

    def _lists(self, prefix: str, query: str) -> pa.Table:
        lists = ", ".join(f"list({c} ORDER BY ord) AS {prefix}_{c}" for c in contract.EVENT_FIELDS)
        return self._arrow(f"SELECT user_id, {lists} FROM ({query}) GROUP BY user_id ORDER BY user_id")

    def _lifelong(self) -> pa.Table:
        """One row a cluster in the order of its newest event: categories of the representative, numbers averaged."""
        past = self._arrow(
            f"SELECT user_id, item_row, ord, {', '.join(contract.EVENT_FIELDS)} FROM past ORDER BY user_id, ord"
        )
        group, representative = compress(past["user_id"].to_numpy(), self.vectors[past["item_row"].to_numpy()])
        self.con.register("grouped", past.append_column("grp", pa.array(group)))
        self.con.register(
            "chosen", past.take(pa.array(representative)).append_column("grp", pa.array(np.arange(len(representative))))
        )
        mean = "CAST(coalesce(round(avg(nullif(g.{0}, {1}))), {1}) AS BIGINT) AS {0}"
        query = f"""SELECT c.user_id, max(g.ord) AS ord, c.item_id, c.author_id, c.tag, c.label,
            {mean.format("time_s", 0)}, {mean.format("play_ms", -1)}, {mean.format("duration_ms", -1)}
            FROM chosen c JOIN grouped g USING (grp)
            GROUP BY c.user_id, c.grp, c.item_id, c.author_id, c.tag, c.label"""
        newest = "QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY ord DESC)"
        return self._lists("lifelong", f"SELECT * FROM ({query}) {newest} <= {LIFELONG_LEN}")

    def _load_items(self, partition: Path) -> None:
        items = self._arrow(f"SELECT * FROM read_parquet('{partition}/part-0.parquet') ORDER BY item_id")
        text = [" ".join(filter(None, row)) for row in zip(*(items[c].to_pylist() for c in ("caption", "asr", "ocr")))]
        self.vectors = content_vectors(
            items["tags"].to_pylist(), items["author_id"].to_pylist(), text, items["content_embedding"].to_pylist()
        )
        self.con.register("items_read", items.append_column("item_row", pa.array(np.arange(len(items)))))
        self.con.execute(
            """CREATE TEMP TABLE items AS SELECT item_id, item_row, author_id, coalesce(duration_ms, -1) AS duration_ms,
            CAST(coalesce(tags[1], -1) AS BIGINT) AS tag FROM items_read"""
        )

    def _load_events(self, lake: Path, since: date | None) -> None:
        """One table of everything users were shown, in order: untimed history first, then the log."""
        log = ", ".join(f"'{partition_path(lake / 'impressions', d)}/part-0.parquet'" for d in self.days)
        active = ""
        if since:
            active = f"SEMI JOIN (SELECT user_id FROM log WHERE dt >= DATE '{since}') USING (user_id)"
        masks = f"""{contract.label_mask("l.")} AS label, {contract.label_known_mask("l.")} AS label_known,
            {contract.positive("l.")} AS positive"""
        self.con.execute(
            f"""CREATE TEMP VIEW log AS SELECT *, CAST(regexp_extract(filename, 'dt=([0-9-]+)', 1) AS DATE) AS dt
            FROM read_parquet([{log}], filename=true, hive_partitioning=false)"""
        )
        union = f"""SELECT l.user_id, l.item_id, epoch_ms(l.event_time) AS ord,
            epoch_ms(l.event_time) // 1000 AS time_s, coalesce(l.play_time_ms, -1) AS play_ms,
            l.duration_ms AS own_duration, {masks}, l.dt, false AS history FROM log l"""
        if (lake / "history").is_dir() and self.days:
            rank = "rank() OVER (PARTITION BY l.user_id ORDER BY l.pos) - 1"
            place = f"({rank}) * {HISTORY_SLICES} // count(*) OVER (PARTITION BY l.user_id)"
            union += f""" UNION ALL SELECT l.user_id, l.item_id, l.pos - 1000000000 AS ord, 0 AS time_s, -1 AS play_ms,
                CAST(NULL AS BIGINT) AS own_duration, {masks},
                DATE '{self.days[0]}' - {HISTORY_SLICES} + CAST({place} AS INTEGER) AS dt, true AS history
                FROM read_parquet('{lake}/history/part-0.parquet') l"""
        self.con.execute(
            f"""CREATE TEMP TABLE events AS SELECT user_id, item_id, author_id, tag, time_s, play_ms,
            coalesce(own_duration, duration_ms) AS duration_ms, label, label_known, positive, dt, history, item_row,
            row_number() OVER (ORDER BY user_id, ord, item_id) AS ord FROM ({union}) {active}
            JOIN items USING (item_id)"""
        )

    def _load_static(self, partition: Path) -> None:
        """Static codes: each column's value hashed with the column's number; a missing value has a code of its own."""
        file = f"read_parquet('{partition}/part-0.parquet')"
        columns = [c for c in pa.parquet.read_schema(partition / "part-0.parquet").names if c != "user_id"]
        codes = ", ".join(
            f"CAST(md5_number_lower(concat('{i}=', coalesce(CAST(\"{c}\" AS VARCHAR), '\\0missing')))"
            f" % {STATIC_BUCKETS} AS BIGINT)"
            for i, c in enumerate(columns)
        )
        self.con.execute(f"CREATE TEMP TABLE static AS SELECT user_id, [{codes or '0'}]::BIGINT[] AS codes FROM {file}")

    def _arrow(self, query: str, **values: Any) -> pa.Table:
        return self.con.sql(query, params=values or None).to_arrow_table()
