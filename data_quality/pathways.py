"""The suites of the user pathway tables: one row a user and instant, lists of int64, oldest event first.

    table = PathwayTable(name="user_short", prefix="short", columns=(...), max_length=20)
    table.suite(before) -> the rules over table.query(...)

What the columns are called is the feature repository's, and comes as an argument; LENGTHS are those of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from data_quality import CRITICAL, WARNING
from data_quality.rules import Rule, never, unique, within
from data_quality.tables import scan
from data_quality.users import MAX_VALUES
from datasets.cleaning import TOLERANCE
from datasets.contract import LABELS, POSITIVE_MASK

KEY = ("user_id", "event_timestamp")
VOLUME = (0.5, 2.0)  # of the median rows of the trailing partitions
SHRUNK = 0.5  # of the mean list length of the partition before
ELEMENTS = 20_000_000  # of the item lists are looked up in the items table; of more, every k-th user's
SEARCHED = ("short", "positive")  # whose events stand in the order of their clocks (a cluster's clock is a mean)

LENGTHS = {"short": 20, "positive": 256, "lifelong": 2000}
TOP_CODE = MAX_VALUES + 1

RANGES = {
    "item_id": (0, None),
    "author_id": (-1, None),
    "tag": (-1, None),
    "time_s": (0, None),
    "play_ms": (-1, None),
    "duration_ms": (-1, None),
    "label": (0, (1 << len(LABELS)) - 1),
}


@dataclass(frozen=True, kw_only=True)
class Before:
    """The trailing partitions of a table: their median rows, and the mean list length of the newest."""

    rows: float
    length: float


@dataclass(frozen=True, kw_only=True)
class PathwayTable:
    """A view: its columns, all lists. `prefix` is "" for one that holds no events; `top` is the largest legal code."""

    name: str
    columns: tuple[str, ...]
    prefix: str = ""
    max_length: int | None = None
    top: int | None = None

    @property
    def schema(self) -> pa.Schema:
        lists = [pa.field(name, pa.list_(pa.int64())) for name in self.columns]
        return pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.timestamp("ms", "UTC")), *lists])

    @property
    def items(self) -> str | None:
        """The column of item ids, if there is one."""
        return next((name for name in self.columns if name.endswith("item_id")), None)

    def query(self, files: list[Path], users: list[Path], end: datetime) -> str:
        """The table with the instants in seconds: of the row, and of the end of the day."""
        return f"""SELECT t.*, len({self.columns[0]}) AS length, epoch_ms(event_timestamp) / 1000 AS stamp_s,
            {end.timestamp()} AS end_s, u.user_id IS NOT NULL AS user_known FROM {scan(files)} t
            LEFT JOIN (SELECT DISTINCT user_id FROM {scan(users)}) u ON t.user_id = u.user_id"""

    def suite(
        self, before: Before | None, *, impressions: list[Path], items: list[Path], end: datetime, total: float = 0
    ) -> list[Rule]:
        """before: the trailing partitions, if any. `total`: elements of the item lists of the table."""
        # An impression whose clock runs ahead of its day is no event of the day yet.
        log = f"(SELECT * FROM {scan(impressions)} WHERE epoch_ms(event_time) < {int(end.timestamp() * 1000)})"
        rules = [*self._rows(before, log), *self._lists()]
        if self.items:
            rules += self._references(items, max(1, int(total // ELEMENTS)))
        if self.prefix:
            rules += self._events(log)
        return rules

    def _rows(self, before: Before | None, log: str) -> list[Rule]:
        shown = f"SELECT DISTINCT user_id FROM {log}"
        missing = f"SELECT s.user_id FROM ({shown}) s ANTI JOIN t USING (user_id)"
        found = [
            within(None, "count(*)", "there are users", CRITICAL, low=1),
            *(never(name, f"{name} IS NULL", f"{name} is never missing", CRITICAL) for name in KEY),
            unique(KEY, "a user has one row an instant", CRITICAL),
            never("user_id", "user_id IS NOT NULL AND NOT user_known", "every user is in the users table", CRITICAL),
            never("event_timestamp", "stamp_s > end_s", "no row is stamped after the day", CRITICAL),
            within(
                "event_timestamp",
                "max(end_s) - max(stamp_s)",
                "the features are as of the end of the day",
                CRITICAL,
                high=0,
            ),
            Rule(
                name="users shown something that day without a row",
                column="user_id",
                says="everybody who was shown something that day has a row",
                severity=CRITICAL,
                value=f"SELECT count(*) FROM ({missing})",
                high=0,
                whole=True,
                shown=f"SELECT * FROM ({missing}) ORDER BY user_id",
            ),
        ]
        if self.prefix == "positive":  # who liked nothing has no row
            found.pop()
        if before is not None:
            low, high = (int(before.rows * share) for share in VOLUME)
            found += [
                within(None, "count(*)", "as many users as in the days before", WARNING, low=low, high=high),
                within(
                    None,
                    "avg(length)",
                    "the lists are not much shorter than the day before",
                    WARNING,
                    low=round(before.length * SHRUNK, 6),
                ),
            ]
        return found

    def _lists(self) -> list[Rule]:
        first, found = self.columns[0], []
        for name in self.columns:
            low, high = (0, self.top) if not self.prefix else RANGES[name.removeprefix(f"{self.prefix}_")]
            bad = f"list_min({name}) < {low}" + (f" OR list_max({name}) > {high}" if high is not None else "")
            said = f"from {low} to {high}" if high is not None else f"{low} or more"
            found += [
                never(name, f"{name} IS NULL", f"{name} is a list, if an empty one", CRITICAL),
                never(name, f"list_count({name}) < len({name})", f"{name} holds no null", CRITICAL),
                never(name, bad, f"{name} is {said}", CRITICAL),
            ]
            if name != first:
                bad = f"len({name}) <> length"
                found.append(never(name, bad, f"{name} is as long as {first}", CRITICAL))
        if self.max_length is not None:
            bad = f"length > {self.max_length}"
            found.append(never(first, bad, f"{first} is at most {self.max_length} long", CRITICAL))
        if not self.prefix and not self.items:
            widths = "count(DISTINCT length)"
            found.append(within(first, widths, f"{first} is equally long for all users", CRITICAL, high=1))
            constant = f"CASE WHEN count(*) > 1 AND min(hash({first})) = max(hash({first})) THEN 1 ELSE 0 END"
            found.append(within(first, constant, f"{first} is not the same for all users", WARNING, high=0))
        return found

    def _references(self, items: list[Path], every: int) -> list[Rule]:
        sample = f"WHERE hash(user_id) % {every} = 0" if every > 1 else ""
        listed = f"SELECT user_id, unnest({self.items}) AS item_id FROM t {sample}"
        unknown = f"SELECT * FROM ({listed}) WHERE item_id IS NOT NULL AND item_id NOT IN (SELECT item_id FROM known)"
        known = f"WITH known AS (SELECT item_id FROM {scan(items)})"
        return [
            Rule(
                name="items of the lists that the items table does not know",
                column=self.items,
                says="every item is in the items table",
                severity=CRITICAL,
                value=f"SELECT ({known} SELECT count(*) FROM ({unknown}))",
                high=0,
                whole=True,
                shown=f"SELECT * FROM ({known} {unknown})",
            ),
            *(
                [never(self.items or "", "length = 0 AND stamp_s >= end_s", "nobody's list is empty", WARNING)]
                if self.prefix != "positive"
                else []
            ),
        ]

    def _events(self, log: str) -> list[Rule]:
        clock, label = f"{self.prefix}_time_s", f"{self.prefix}_label"
        slack = int(TOLERANCE.total_seconds())
        found = [
            never(clock, f"list_max({clock}) > stamp_s + {slack}", "no event is later than the row", CRITICAL),
            never(clock, f"list_max({clock}) > stamp_s", "no clock runs ahead of the row", WARNING),
        ]
        if self.prefix in SEARCHED:
            found.append(never(clock, f"list_sort({clock}) <> {clock}", "the oldest event comes first", CRITICAL))
        if self.prefix == "short":
            newest = f"SELECT max(epoch_ms(event_time)) / 1000 FROM {log}"
            found.append(
                within(
                    clock,
                    f"({newest}) - max(list_max({clock}))",
                    "the newest event of the day is in there",
                    CRITICAL,
                    high=1,
                )
            )
        if self.prefix == "positive":
            bad = f"len(list_filter({label}, lambda x: x & {POSITIVE_MASK} = 0)) > 0"
            found.append(never(label, bad, "every event has positive feedback", CRITICAL))
        return found


def pathway_tables(columns: Mapping[str, Sequence[str]]) -> list[PathwayTable]:
    """The tables of the feature views, by the names of their columns: `user_short` holds `short_item_id` and so on."""
    found = []
    for name, lists in columns.items():
        prefix = name.removeprefix("user_")
        kind = {"prefix": prefix, "max_length": LENGTHS[prefix]} if prefix in LENGTHS else {"prefix": ""}
        top = TOP_CODE if name == "user_static" else None
        found.append(PathwayTable(name=name, columns=tuple(lists), top=top, **kind))
    return found
