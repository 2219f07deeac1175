"""The zoo: every kind of bad data that the suites must catch, each made by a function of its name from a good lake.

    for kind in ZOO: kind.spoil(workspace) makes it; kind.reasons says which rules, and no others, must then fail

`spoil` gets a copy of a lake and its pathway tables (`Workspace`). Adding a kind: write a function under `@kind(...)`.
This file is long because it is a list: one small function a kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_quality.pathways import pathway_tables
from datasets.contract import EVENT_FIELDS, LABELS, POSITIVE_LABELS
from datasets.partitions import MANIFEST, PART, read_manifest, write_partition

DAY = "2025-01-03"
C, W = "critical", "warning"
VIEWS = {"user_short": "short", "user_positive": "positive", "user_lifelong": "lifelong"}
COLUMNS = {"user_static": ("static_codes",), "user_seen": ("seen_item_id",)}
COLUMNS |= {view: tuple(f"{prefix}_{field}" for field in EVENT_FIELDS) for view, prefix in VIEWS.items()}
TABLES = pathway_tables(COLUMNS)
Row = dict[str, Any]
Reason = tuple[str, str, str]


@dataclass(frozen=True)
class Workspace:
    """A lake and the pathway tables made of it, for a kind to spoil."""

    lake: Path
    features: Path

    def change(
        self,
        table: str,
        rows: Callable[[list[Row]], list[Row]] = list,
        schema: Callable[[pa.Schema], pa.Schema] | None = None,
        counts: dict[str, int] | None = None,
    ) -> None:
        """Send the rows of a table's partition of DAY through `rows`, its schema through `schema`."""
        path = (self.features if table.startswith("user_") else self.lake) / table / f"dt={DAY}"
        manifest, old = read_manifest(path), pq.read_table(path / PART, partitioning=None)
        loose = pa.schema([field.with_nullable(True) for field in old.schema])
        new = pa.Table.from_pylist(rows(old.to_pylist()), schema=schema(loose) if schema else loose)
        fields = {name: manifest[name] for name in ("timezone", "sources") if name in manifest}
        write_partition(path, new, counts=manifest["counts"] | (counts or {}), **fields)


@dataclass(frozen=True)
class Kind:
    """A kind of bad data: what makes it, and the (severity, table, rule) of all that fails."""

    name: str
    spoil: Callable[[Workspace], None]
    reasons: frozenset[Reason]


ZOO: list[Kind] = []


def kind(table: str, *, critical: tuple[str, ...] = (), warning: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Put a function into the zoo. `table`: whose rules fail, and those only."""

    def register(spoil: Callable[[Workspace], None]) -> Callable[[Workspace], None]:
        reasons = {(C, table, rule) for rule in critical} | {(W, table, rule) for rule in warning}
        ZOO.append(Kind(spoil.__name__, spoil, frozenset(reasons)))
        return spoil

    return register


def first(**values: Any) -> Callable[[list[Row]], list[Row]]:
    """Change the first row."""
    return lambda rows: [rows[0] | values, *rows[1:]]


def every(**values: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row | values for row in rows]


def every_other(**values: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row | (values if number % 2 else {}) for number, row in enumerate(rows)]


def first_list(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[list[Row]], list[Row]]:
    """Change one list of the first row that has one of two elements or more."""

    def apply(rows: list[Row]) -> list[Row]:
        at = next(number for number, row in enumerate(rows) if len(row[name]) > 1)
        return [row | ({name: change(row[name])} if number == at else {}) for number, row in enumerate(rows)]

    return apply


def moved(rows: list[Row], **by: int) -> list[Row]:
    return [row | {"event_time": row["event_time"] + timedelta(**by)} for row in rows]


# ---- columns of the files

COLUMNS = "the file has the contract's columns"


def without(name: str) -> Callable[[pa.Schema], pa.Schema]:
    return lambda schema: pa.schema([field for field in schema if field.name != name])


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Schema], pa.Schema]:
    return lambda schema: schema.set(schema.get_field_index(name), pa.field(name, kind))


@kind("schema", critical=(COLUMNS,))
def column_missing(w: Workspace) -> None:
    w.change("impressions", schema=without("is_hate"))


@kind("schema", critical=(COLUMNS,))
def column_of_another_type(w: Workspace) -> None:
    w.change("impressions", schema=retyped("play_time_ms", pa.float64()))


@kind("schema", critical=(COLUMNS,))
def column_too_many(w: Workspace) -> None:
    w.change("items", schema=lambda schema: schema.append(pa.field("price", pa.float64())))


@kind("schema", critical=(COLUMNS,))
def user_feature_that_is_no_category(w: Workspace) -> None:
    w.change("users", every(device=1.5), retyped("device", pa.float64()))


@kind("schema", critical=(COLUMNS,))
def pathway_list_missing(w: Workspace) -> None:
    w.change("user_short", schema=without("short_label"))


# ---- impressions


@kind("impressions", critical=("user_id is never missing",))
def impression_without_user(w: Workspace) -> None:
    w.change("impressions", first(user_id=None))


@kind("impressions", critical=("item_id is never missing",))
def impression_without_item(w: Workspace) -> None:
    w.change("impressions", first(item_id=None))


@kind("impressions", critical=("event_time is never missing",))
def impression_without_time(w: Workspace) -> None:
    w.change("impressions", first(event_time=None))


@kind("impressions", critical=("user_id is not negative", "every user is in the users table"))
def negative_user(w: Workspace) -> None:
    w.change("impressions", first(user_id=-7))


@kind("impressions", critical=("an event stands there once",))
def event_twice(w: Workspace) -> None:
    w.change("impressions", lambda rows: [*rows, rows[0]])


@kind("impressions", critical=("every item is in the items table",))
def unknown_item(w: Workspace) -> None:
    w.change("impressions", first(item_id=999))


@kind("impressions", critical=("every user is in the users table",))
def unknown_user(w: Workspace) -> None:
    w.change("impressions", first(user_id=999))


@kind("impressions", critical=("is_like is 0 or 1",))
def label_of_two(w: Workspace) -> None:
    w.change("impressions", first(is_like=2))


@kind("impressions", critical=("play_time_ms is not negative",))
def negative_play_time(w: Workspace) -> None:
    w.change("impressions", first(play_time_ms=-1))


@kind("impressions", critical=("the play time is at most 100 durations",))
def play_of_two_hundred_durations(w: Workspace) -> None:
    w.change("impressions", first(play_time_ms=2_000_000, duration_ms=10_000))


@kind("impressions", critical=("a known duration is positive",))
def duration_of_zero(w: Workspace) -> None:
    w.change("impressions", first(duration_ms=0))


@kind("impressions", critical=("position is not negative",))
def negative_position(w: Workspace) -> None:
    w.change("impressions", first(position=-1))


@kind("impressions", critical=("the time lies in the log day, give or take the tolerance",))
def time_two_days_later(w: Workspace) -> None:
    w.change("impressions", lambda rows: [*moved(rows[:1], days=2), *rows[1:]])


@kind("impressions", critical=("the time lies in the log day, give or take the tolerance",))
def time_seven_hours_too_early(w: Workspace) -> None:
    w.change("impressions", lambda rows: [*moved(rows[:1], hours=-30), *rows[1:]])


@kind("impressions", warning=("the log reaches the last hours of its day",))
def export_that_stopped_in_the_afternoon(w: Workspace) -> None:
    w.change(
        "impressions", lambda rows: [row for row in rows if row["event_time"].hour < 9 or row["event_time"].hour > 15]
    )


@kind("impressions", warning=("the play time is mostly known",))
def play_times_lost(w: Workspace) -> None:
    w.change("impressions", every_other(play_time_ms=None))


@kind(
    "impressions",
    critical=("there are positives, and not everything is one",),
    warning=("the rate of is_long_view is like that of the days before",),
)
def no_positives(w: Workspace) -> None:
    w.change("impressions", every(**dict.fromkeys(POSITIVE_LABELS, 0)))


@kind("impressions", critical=("is_forward is observed as often as in the days before",))
def one_signal_half_lost(w: Workspace) -> None:
    w.change("impressions", every_other(is_forward=None))


@kind("impressions", warning=("is_hate is observed as often as in the days before",))
def one_side_signal_lost(w: Workspace) -> None:
    w.change("impressions", every(is_hate=None))


@kind("impressions", warning=("the rate of is_click is like that of the days before",))
def nobody_clicks(w: Workspace) -> None:
    w.change("impressions", every(is_click=0))


@kind(
    "impressions",
    critical=(
        "a positive signal is observed",
        "there are positives, and not everything is one",
        *(f"{name} is observed as often as in the days before" for name in POSITIVE_LABELS),
    ),
    warning=(
        *(f"{name} is observed as often as in the days before" for name in LABELS if name not in POSITIVE_LABELS),
        *(f"the rate of {name} is like that of the days before" for name in ("is_click", "is_long_view")),
    ),
)
def no_signal_at_all(w: Workspace) -> None:
    w.change("impressions", every(**dict.fromkeys(LABELS)))


@kind("impressions", warning=("as many rows as in the days before",))
def three_times_the_rows(w: Workspace) -> None:
    w.change("impressions", lambda rows: [*rows, *moved(rows, milliseconds=1), *moved(rows, milliseconds=2)])


@kind("impressions", critical=("the day is not cut off",), warning=("as many rows as in the days before",))
def a_day_cut_off(w: Workspace) -> None:
    w.change("impressions", lambda rows: rows[-20:])


# ---- what the ingest counted


@kind("intake", critical=("quarantined rows are at most 20 %",), warning=("quarantined rows are at most 1 %",))
def many_rows_quarantined(w: Workspace) -> None:
    w.change("impressions", counts={"no_id": 150})


@kind("intake", warning=("exact duplicates are at most 10 %",))
def many_duplicates(w: Workspace) -> None:
    w.change("impressions", counts={"duplicates": 80})


@kind("intake", warning=("late rows are at most 5 %",))
def many_late_rows(w: Workspace) -> None:
    w.change("impressions", counts={"late": 60})


@kind("intake", warning=("values made null are at most 1 %",))
def many_values_mended(w: Workspace) -> None:
    w.change("impressions", counts={"play_time_negative": 40})


# ---- items and users


@kind("items", critical=("an item stands there once",))
def item_twice(w: Workspace) -> None:
    w.change("items", lambda rows: [*rows, rows[0]])


@kind("items", critical=("author_id is an id, or -1 for unknown",))
def author_of_minus_two(w: Workspace) -> None:
    w.change("items", first(author_id=-2))


@kind("items", warning=("most items have a known author",))
def unknown_authors(w: Workspace) -> None:
    w.change("items", every(author_id=-1))


@kind("items", warning=("most items have a tag, a text or an embedding",))
def items_without_content(w: Workspace) -> None:
    w.change("items", every(tags=[], caption=None))


@kind("items", warning=("no item is uploaded after the day",))
def item_from_the_future(w: Workspace) -> None:
    w.change("items", lambda rows: [rows[0] | {"upload_time": rows[0]["upload_time"] + timedelta(days=90)}, *rows[1:]])


def embedded(rows: list[Row]) -> list[Row]:
    return [row | {"content_embedding": [1.0, 0.5, float(number)]} for number, row in enumerate(rows)]


@kind("items", critical=("no embedding holds a NaN, an infinity or a null",))
def embedding_with_a_nan(w: Workspace) -> None:
    w.change("items", lambda rows: first(content_embedding=[1.0, float("nan"), 0.0])(embedded(rows)))


@kind("items", critical=("no embedding holds a NaN, an infinity or a null",))
def embedding_with_a_null(w: Workspace) -> None:
    w.change("items", lambda rows: first(content_embedding=[1.0, None, 0.0])(embedded(rows)))


@kind("items", critical=("every embedding has the same width",))
def embedding_of_another_width(w: Workspace) -> None:
    w.change("items", lambda rows: first(content_embedding=[1.0, 2.0])(embedded(rows)))


@kind("items", critical=("the embeddings are not all one vector",))
def embeddings_all_one_vector(w: Workspace) -> None:
    w.change("items", every(content_embedding=[1.0, 2.0, 3.0]))


@kind("items", warning=("hardly any embedding is zero",))
def embeddings_of_zero(w: Workspace) -> None:
    w.change("items", lambda rows: every_other(content_embedding=[0.0, 0.0, 0.0])(embedded(rows)))


@kind("users", critical=("a user stands there once",))
def user_twice(w: Workspace) -> None:
    w.change("users", lambda rows: [*rows, rows[0]])


@kind("users", warning=("device is known for some users",))
def feature_lost(w: Workspace) -> None:
    w.change("users", every(device=None))


def snapshot_before(w: Workspace, table: str, change: Callable[[list[Row]], list[Row]]) -> None:
    """Give a table a partition of the day before, made of the day's own rows."""
    rows = pq.read_table(w.lake / table / f"dt={DAY}" / PART, partitioning=None)
    write_partition(w.lake / table / "dt=2025-01-02", pa.Table.from_pylist(change(rows.to_pylist()), rows.schema))


@kind("items", warning=("the catalogue has not shrunk",))
def catalogue_half_gone(w: Workspace) -> None:
    snapshot_before(w, "items", lambda rows: [*rows, *(row | {"item_id": row["item_id"] + 1000} for row in rows)])


@kind("items", warning=("embeddings have not gone missing",))
def embeddings_gone_missing(w: Workspace) -> None:
    snapshot_before(w, "items", embedded)


@kind("users", warning=("the users have not become fewer",))
def users_half_gone(w: Workspace) -> None:
    snapshot_before(w, "users", lambda rows: [*rows, *(row | {"user_id": row["user_id"] + 1000} for row in rows)])


# ---- pathway tables


@kind("user_short", critical=("a user has one row an instant",))
def user_with_two_rows(w: Workspace) -> None:
    w.change("user_short", lambda rows: [*rows, rows[0]])


@kind("user_short", critical=("everybody who was shown something that day has a row",))
def user_without_a_row(w: Workspace) -> None:
    w.change("user_short", lambda rows: rows[1:])


@kind("user_static", critical=("the features are as of the end of the day",))
def features_of_an_hour_before(w: Workspace) -> None:
    w.change(
        "user_static",
        lambda rows: [row | {"event_timestamp": row["event_timestamp"] - timedelta(hours=1)} for row in rows],
    )


@kind("user_short", critical=("the newest event of the day is in there",))
def short_pathway_that_stopped_growing(w: Workspace) -> None:
    def stale(rows: list[Row]) -> list[Row]:
        return [row | {"short_time_s": [s - 7200 for s in row["short_time_s"]]} for row in rows]

    w.change("user_short", stale)


@kind("user_short", critical=("no event is later than the row",), warning=("no clock runs ahead of the row",))
def event_of_the_future_in_a_pathway(w: Workspace) -> None:
    w.change("user_short", first_list("short_time_s", lambda old: [*old[:-1], old[-1] + 3 * 86_400]))


@kind("user_short", critical=("short_tag is as long as short_item_id",))
def lists_of_different_length(w: Workspace) -> None:
    w.change("user_short", first_list("short_tag", lambda old: old[1:]))


@kind("user_short", critical=("the oldest event comes first",))
def events_newest_first(w: Workspace) -> None:
    w.change("user_short", lambda rows: [row | {"short_time_s": row["short_time_s"][::-1]} for row in rows])


@kind("user_short", critical=("short_item_id is at most 20 long",))
def list_too_long(w: Workspace) -> None:
    def longer(rows: list[Row]) -> list[Row]:
        row = {k: ([v[0]] * 21 if isinstance(v, list) else v) for k, v in rows[0].items()}
        return [row, *rows[1:]]

    w.change("user_short", longer)


@kind("user_short", critical=("short_label is from 0 to 255",))
def label_mask_out_of_range(w: Workspace) -> None:
    w.change("user_short", first_list("short_label", lambda old: [256, *old[1:]]))


@kind("user_lifelong", critical=("every item is in the items table",))
def pathway_item_unknown(w: Workspace) -> None:
    w.change("user_lifelong", first_list("lifelong_item_id", lambda old: [999, *old[1:]]))


@kind("user_lifelong", critical=("lifelong_play_ms holds no null",))
def null_inside_a_list(w: Workspace) -> None:
    w.change("user_lifelong", first_list("lifelong_play_ms", lambda old: [None, *old[1:]]))


@kind("user_positive", critical=("every event has positive feedback",))
def positive_pathway_with_a_plain_event(w: Workspace) -> None:
    w.change("user_positive", first_list("positive_label", lambda old: [0, *old[1:]]))


@kind("user_static", critical=("static_codes is equally long for all users",))
def static_codes_of_another_width(w: Workspace) -> None:
    w.change("user_static", first_list("static_codes", lambda old: old[1:]))


@kind("user_static", critical=("static_codes is from 0 to 8191",))
def static_code_out_of_range(w: Workspace) -> None:
    w.change("user_static", first_list("static_codes", lambda old: [8192, *old[1:]]))


@kind("user_static", warning=("static_codes is not the same for all users",))
def static_codes_all_the_same(w: Workspace) -> None:
    w.change("user_static", lambda rows: [row | {"static_codes": rows[0]["static_codes"]} for row in rows])


@kind("user_seen", warning=("the lists are not much shorter than the day before",))
def seen_lists_lost(w: Workspace) -> None:
    w.change("user_seen", lambda rows: [row | {"seen_item_id": row["seen_item_id"][:1]} for row in rows])


@kind("user_seen", critical=("user_id is never missing",))
def pathway_row_without_user(w: Workspace) -> None:
    w.change("user_seen", lambda rows: [*rows, rows[0] | {"user_id": None}])


def forget_the_timezone(w: Workspace) -> None:
    """Not of the zoo: no rule fails, the day cannot be judged at all."""
    file = w.lake / "impressions" / f"dt={DAY}" / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["timezone"]
    file.write_text(json.dumps(manifest))
