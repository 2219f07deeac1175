"""The four user pathways as tables: what each user had done at the end of a log day, and what they were shown that day.

    with Pathways(lake=Path("var/simulated/lake"), features=Path("var/simulated/features"), day=date(2022, 5, 5)) as p:
        p.write_views(date(2022, 5, 5))

Partitions `<view>/dt=D/part-0.parquet`, one row a user whose history changed on D, stamped with the end of D: it holds
the events of log days up to D that happened strictly before that instant. Lists are oldest first, -1 is an unknown
number, `time_s` 0 an unknown clock. A source's untimed history becomes `HISTORY_SLICES` pseudo-days before the first
log day: their order is known, their clock is not, and `time_s` says so.

Views: user_static, user_short, user_positive, user_lifelong, user_seen. `labels`: the impressions of a user and window.
With `grain="session"` user_short also has a row for the start of each session, and label rows are per session.
Users are worked on in ranges of their id, so that memory is bounded; the ranges change no row.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.partitions import partition_days, partition_path, read_manifest, write_partition
from feature_repo import dimensions, transforms
from feature_repo.config import PathwaysConfig
from feature_repo.engine import Engine, duckdb_engine
from feature_repo.lifelong_rows import STATE, LifelongRows
from feature_repo.transforms import LABEL_COLUMNS

VIEWS = ("user_static", "user_short", "user_positive", "user_lifelong", "user_seen")
Window = tuple[datetime, datetime | None, datetime | None, date]
"""A row of labels: the instant of its context, its impressions' first and last (exclusive) instant, their log day."""

_TIMESTAMP = pa.timestamp("ms", "UTC")
_ORDER = [("user_id", "ascending"), ("event_timestamp", "ascending")]


class Pathways:
    """The lake of one source read once, and its feature partitions written day by day. Close by leaving the block."""

    def __init__(
        self,
        *,
        lake: Path,
        features: Path,
        day: date,
        timezone: str = "UTC",
        since: date | None = None,
        config: PathwaysConfig = PathwaysConfig(),  # noqa: B008 (frozen)
        engine: Engine | None = None,
    ) -> None:
        """Read all impressions up to `day` (and the day after, for evaluation), the items and users of `day`.

        `since`: the first day whose partitions will be written; users without an impression from then on are not read.
        `engine`: DuckDB with 3 GB unless given; it is closed with this.
        """
        self.features, self.day, self.zone, self.config = features, day, ZoneInfo(timezone), config
        features.mkdir(parents=True, exist_ok=True)
        for left in features.glob(".spill-*"):  # of a killed run; only one process writes a source's features
            shutil.rmtree(left)
        self._spill = tempfile.TemporaryDirectory(prefix=".spill-", dir=features)
        self.engine = engine or duckdb_engine(spill=Path(self._spill.name))
        items, vector_ID = dimensions.items(partition_path(lake / "items", day))
        self.static = dimensions.static_codes(partition_path(lake / "users", day))
        self.lifelong = LifelongRows(self.engine, features, vector_ID, config)
        self.days = [d for d in partition_days(lake / "impressions") if d <= day + timedelta(days=1)]
        self._events = self._read(lake, self.engine.table("items", items), since)
        self._ranges = self._user_ranges()

    def __enter__(self) -> Pathways:
        return self

    def __exit__(self, *exception: object) -> None:
        del self._events
        self.engine.close()
        self._spill.cleanup()

    def end_of(self, day: date) -> datetime:
        """The instant a log day ends, in UTC."""
        return datetime.combine(day + timedelta(days=1), time(), self.zone).astimezone(UTC)

    def history_days(self) -> list[date]:
        """The pseudo-days of the untimed history, oldest first; none without one."""
        old = self._events.filter(self._events.ord < 0).select("dt").distinct()
        return sorted(self.engine.arrow(old)["dt"].to_pylist())

    def held_back_from(self, day: date, share: float = 0.2) -> datetime:
        """The full hour after which about `share` of a day's impressions happened: held back when D+1 is missing."""
        today = self._events.filter(self._events.dt == ibis.literal(day), self._events.ord >= 0)
        hours = today.group_by(hour=today.time_s // 3600).agg(events=today.count()).order_by("hour")
        counted = self.engine.arrow(hours)
        running = np.cumsum(counted["events"].to_numpy())
        hour = counted["hour"][int(np.searchsorted(running, (1 - share) * running[-1]))].as_py()
        return datetime.fromtimestamp(hour * 3600, UTC)

    def write_views(self, day: date, *, cutoff: datetime | None = None) -> list[Path]:
        """The five views of the users of `day`, and the state of lifelong; with a cutoff also as of that instant.

        At the cutoff everybody of the day gets a row: also users who come only after it need their context then.
        """
        instants = [*([cutoff] if cutoff else []), self.end_of(day)]
        paths = {name: partition_path(self.features / name, day) for name in (*VIEWS, STATE)}
        staged: dict[str, list[Path]] = {name: [] for name in paths}
        for number, events in enumerate(self._buckets()):
            parts: dict[str, list[pa.Table]] = {name: [] for name in paths}
            today = self._of_day(events, day)
            mine = self.engine.keep("mine", events.filter(events.dt <= ibis.literal(day)).semi_join(today, "user_id"))
            for instant in instants:
                past = transforms.before(mine, day, _ms(instant), self.config.positive_mask)
                past = self.engine.keep("past", past)
                for name, table in self._views(past, day).items():
                    if name != STATE or instant == instants[-1]:
                        parts[name].append(_stamped(table, instant))
            if self.config.grain == "session":
                parts["user_short"].append(self._session_rows(mine, day))
            for name, tables in parts.items():
                staged[name].append(self._stage(f"{name}-{number}", pa.concat_tables(tables).sort_by(_ORDER)))
        for name, path in paths.items():
            write_partition(path, _tables(staged[name]))
        return list(paths.values())

    def write_labels(self, folder: str, day: date, windows: Iterable[Window]) -> Path:
        """What users were shown: one row a user and window (and session, if that is the grain), as lists.

        The row is stamped one millisecond after the instant of its context (a session: with its first impression), so
        that a point-in-time join finds the snapshot of it.
        """
        staged, wanted = [], list(windows)
        for number, events in enumerate(self._buckets()):
            tables = [self._shown(events, *window) for window in wanted]
            staged.append(self._stage(f"{folder}-{number}", pa.concat_tables(tables).sort_by(_ORDER)))
        path = partition_path(self.features / folder, day)
        write_partition(path, _tables(staged))
        return path

    def _views(self, past: ir.Table, day: date) -> dict[str, pa.Table]:
        """The views of the users of `past`, and the state of lifelong, without their time stamp."""
        short = transforms.short(past, self.config.short_len)
        positive = transforms.positive(past, self.config.positive_len)
        lifelong, state = self.lifelong.of(past, day)
        known = np.isin(self.static["user_id"].to_numpy(), state["user_id"].to_numpy())
        return {
            "user_static": self.static.filter(pa.array(known)),
            "user_short": self.engine.lists(short, transforms.event_columns("short")),
            "user_positive": self.engine.lists(positive, transforms.event_columns("positive")),
            "user_lifelong": lifelong,
            "user_seen": self.engine.lists(past, {"seen_item_id": "item_id"}),
            STATE: state,
        }

    def _session_rows(self, mine: ir.Table, day: date) -> pa.Table:
        """The short pathway as of the start of each session of the day."""
        today = mine.filter(mine.dt == ibis.literal(day), mine.ord >= 0)
        numbered = transforms.sessions(today, self.config.session_gap_minutes)
        contexts = transforms.session_contexts(mine, numbered, self.config.short_len)
        table = self.engine.lists(contexts, transforms.event_columns("short"), keys=("user_id", "first_ord"))
        # Strictly before its first impression, which is where the label row is stamped.
        stamp = pa.array(table["first_ord"].to_numpy() - 1, pa.int64()).cast(_TIMESTAMP)
        return table.drop_columns(["first_ord"]).add_column(1, pa.field("event_timestamp", _TIMESTAMP), stamp)

    def _shown(
        self, events: ir.Table, instant: datetime, start: datetime | None, end: datetime | None, log_day: date
    ) -> pa.Table:
        """The label rows of one window. An untimed event belongs to its pseudo-day whatever the instants."""
        shown = events.filter(events.dt == ibis.literal(log_day))
        if self.config.grain == "session":
            shown = transforms.sessions(shown, self.config.session_gap_minutes)
        if start is not None:
            shown = shown.filter((shown.ord < 0) | (shown.ord >= _ms(start)))
        if end is not None:
            shown = shown.filter((shown.ord >= 0) & (shown.ord < _ms(end)))
        columns = {name: name for name in LABEL_COLUMNS}
        if self.config.grain == "day":
            return _stamped(self.engine.lists(shown, columns), instant + timedelta(milliseconds=1))
        table = self.engine.lists(shown, columns, keys=("user_id", "first_ord"))
        # A session that the window cuts, and an untimed one, has the context of the window.
        first = np.maximum(table["first_ord"].to_numpy(), _ms(instant) + 1)
        stamp = pa.array(first, pa.int64()).cast(_TIMESTAMP)
        return table.drop_columns(["first_ord"]).add_column(1, pa.field("event_timestamp", _TIMESTAMP), stamp)

    def _of_day(self, events: ir.Table, day: date) -> ir.Table:
        """The users whose row of `day` is new: of its log day, or late ones of an earlier log day inside its hours."""
        start, end = _ms(self.end_of(day - timedelta(days=1))), _ms(self.end_of(day))
        late = (events.ord >= start) & (events.ord < end) & (events.dt < ibis.literal(day))
        return events.filter((events.dt == ibis.literal(day)) | late).select("user_id").distinct()

    def _read(self, lake: Path, items: ir.Table, since: date | None) -> ir.Table:
        """Everything users were shown: untimed history first, then the log. Sorted by user where there are ranges."""
        engine = self.engine
        log = engine.read([partition_path(lake / "impressions", d) for d in self.days])
        events = transforms.log_events(log, items, engine.unix_ms)
        active = None
        if since:
            start = _ms(self.end_of(since - timedelta(days=1)))
            active = log.filter((log.dt >= ibis.literal(since)) | (engine.unix_ms(log.event_time) >= start))
        if (lake / "history").is_dir() and self.days:
            history = engine.read([lake / "history"])
            events = events.union(transforms.history_events(history, items, self.days[0]))
        if active is not None:
            events = events.semi_join(active.select("user_id").distinct(), "user_id")
        rows = sum(read_manifest(partition_path(lake / "impressions", d))["rows"] for d in self.days)
        return engine.keep("events", events.order_by("user_id") if rows > self.config.bucket_events else events)

    def _user_ranges(self) -> list[tuple[int, int]]:
        """Ranges [low, high) of user ids of about `bucket_events` events each; one range where they fit one."""
        everyone = (-(2**63), 2**63 - 1)
        total = self.engine.arrow(self._events.aggregate(rows=self._events.count()))["rows"][0].as_py()
        if total <= self.config.bucket_events:
            return [everyone]
        counts = self._events.group_by("user_id").agg(events=self._events.count()).order_by("user_id")
        table = self.engine.arrow(counts)
        running = np.cumsum(table["events"].to_numpy()) // self.config.bucket_events
        first = table["user_id"].to_numpy()[1:][np.diff(running) > 0].tolist()
        return list(zip([everyone[0], *first], [*first, everyone[1]]))

    def _buckets(self) -> Iterator[ir.Table]:
        """The events of each range of users."""
        events = self._events
        for low, high in self._ranges:
            yield events if len(self._ranges) == 1 else events.filter(events.user_id >= low, events.user_id < high)

    def _stage(self, name: str, table: pa.Table) -> pa.Table | Path:
        """The table itself, or where there are several ranges a file of it that waits to be joined with the others."""
        if len(self._ranges) == 1:
            return table
        path = Path(self._spill.name) / f"{name}.parquet"
        pq.write_table(table, path, compression="lz4")
        return path


def _tables(staged: list[pa.Table | Path]) -> Iterator[pa.Table]:
    for part in staged:
        yield pq.read_table(part) if isinstance(part, Path) else part


def _stamped(table: pa.Table, instant: datetime) -> pa.Table:
    stamps = pa.repeat(pa.scalar(instant, _TIMESTAMP), len(table))
    return table.add_column(1, pa.field("event_timestamp", _TIMESTAMP), stamps)


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)
