"""The transformations behind the pathways, written once as Ibis expressions: DuckDB runs them, or Spark (engine.py).

    events = log_events(log, items, engine.unix_ms)
    past = before(events, day, instant_ms, config.positive_mask)
    rows = engine.lists(short(past, 20), event_columns("short"))

An event is what a user was shown, and what came of it. `ord` orders the events of a user: unix milliseconds, or for an
untimed history a large negative place; with equal `ord` the smaller item id comes first. The results are flat, one row
an event: `Engine.lists` sorts them and packs them into lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import reduce
from operator import add

import ibis
import ibis.expr.types as ir

from datasets.contract import EVENT_FIELDS, LABELS

HISTORY_SLICES = 3
HISTORY_ORD = -1_000_000_000  # `ord` of the first untimed event; every clock is later
LABEL_COLUMNS = ("item_id", "label", "label_known", "play_ms", "duration_ms")
_EVENT = ("user_id", "item_id", "author_id", "tag", "time_s", "play_ms", "duration_ms", "label", "label_known")
EVENT_COLUMNS = (*_EVENT, "dt", "ord", "item_row")
_MEANS = {"time_s": 0, "play_ms": -1, "duration_ms": -1}
"""The continuous fields and what stands for unknown in each."""


def log_events(log: ir.Table, items: ir.Table, unix_ms: Callable[[ir.Value], ir.Value]) -> ir.Table:
    """The events of the impressions table, joined with `items` (item_id, item_row, author_id, tag, duration_ms)."""
    ord_ms = unix_ms(log.event_time)
    own = log.select(
        "user_id",
        "item_id",
        "dt",
        ord=ord_ms,
        time_s=ord_ms // 1000,
        play_ms=log.play_time_ms.coalesce(-1),
        own_ms=log.duration_ms,
        **_masks(log),
    )
    return _with_items(own, items)


def history_events(history: ir.Table, items: ir.Table, first_day: date) -> ir.Table:
    """The events of the untimed history, spread over `HISTORY_SLICES` pseudo-days before the first log day."""
    mine = ibis.window(group_by="user_id", order_by="pos")
    place = ibis.rank().over(mine) * HISTORY_SLICES // history.count().over(group_by="user_id")
    day = ibis.literal(first_day - timedelta(days=HISTORY_SLICES))
    for i in range(1, HISTORY_SLICES):
        day = ibis.ifelse(place >= i, ibis.literal(first_day - timedelta(days=HISTORY_SLICES - i)), day)
    own = history.select(
        "user_id",
        "item_id",
        dt=day,
        ord=history.pos.cast("int64") + HISTORY_ORD,
        time_s=ibis.literal(0, "int64"),
        play_ms=ibis.literal(-1, "int64"),
        own_ms=ibis.null("int64"),
        **_masks(history),
    )
    return _with_items(own, items)


def before(events: ir.Table, day: date, instant_ms: int, positive_mask: int) -> ir.Table:
    """What was known at an instant of a log day: events of log days up to it that happened strictly before it.

    `back` counts from a user's newest event (0), `liked_back` its positives alike: the pathways are cuts of these two.
    """
    known = events.filter(events.dt <= ibis.literal(day), events.ord < instant_ms)
    order = [known.ord.desc(), known.item_id.desc()]
    known = known.mutate(liked=ibis.ifelse((known.label & positive_mask) != 0, 1, 0))
    running = ibis.window(group_by="user_id", order_by=order, preceding=None, following=0)
    counted = known.mutate(
        back=ibis.row_number().over(group_by="user_id", order_by=order), liked_back=known.liked.sum().over(running) - 1
    )
    return counted


def short(past: ir.Table, count: int) -> ir.Table:
    """The newest events of each user, whatever came of them. past: of `before`."""
    return past.filter(past.back < count)


def positive(past: ir.Table, count: int) -> ir.Table:
    """The newest positive events of each user. past: of `before`."""
    return past.filter(past.liked == 1, past.liked_back < count)


def newest(events: ir.Table, count: int, keys: Sequence[str] = ("user_id",)) -> ir.Table:
    """The last `count` events of each user (of each key)."""
    order = [events.ord.desc(), events.item_id.desc()]
    ranked = events.mutate(place=ibis.row_number().over(group_by=list(keys), order_by=order))
    return ranked.filter(ranked.place < count).drop("place")


def event_columns(prefix: str) -> dict[str, str]:
    """The columns of an event pathway and the field of each."""
    return {f"{prefix}_{field}": field for field in EVENT_FIELDS}


def cluster_events(grouped: ir.Table, chosen: ir.Table) -> ir.Table:
    """One event a cluster: categories of its representative, known numbers averaged, the place of its newest event.

    grouped: events and the cluster of each (`grp`). chosen: the representatives, `grp` and the categories.
    """
    means = {}
    for field, unknown in _MEANS.items():
        known = grouped[field].nullif(unknown)
        # Sums of integers and one division: both engines round alike.
        mean = (known.sum().cast("float64") / known.count().cast("float64") + 0.5).floor().cast("int64")
        means[field] = ibis.ifelse(known.count() > 0, mean, unknown)
    numbers = grouped.group_by("grp").agg(ord=grouped.ord.max(), **means)
    joined = chosen.join(numbers, "grp")
    return joined.select("user_id", "ord", *EVENT_FIELDS)


def sessions(events: ir.Table, gap_minutes: int) -> ir.Table:
    """Events with `session` (0, 1, ... of each user) and `first_ord`, the place of its first event."""
    order = [events.ord, events.item_id]
    pause = events.ord - events.ord.lag().over(group_by="user_id", order_by=order)
    marked = events.mutate(starts=ibis.ifelse(pause > gap_minutes * 60_000, 1, 0))
    running = ibis.window(group_by="user_id", order_by=[marked.ord, marked.item_id], preceding=None, following=0)
    counted = marked.mutate(session=marked.starts.sum().over(running)).drop("starts")
    return counted.mutate(first_ord=counted.ord.min().over(group_by=["user_id", "session"]))


def session_contexts(events: ir.Table, started: ir.Table, count: int) -> ir.Table:
    """The last `count` events before each start of a session (user_id, first_ord): `events` once a start."""
    starts = started.select("user_id", "first_ord").distinct()
    joined = events.join(starts, "user_id")
    return newest(joined.filter(joined.ord < joined.first_ord), count, keys=("user_id", "first_ord"))


def _masks(table: ir.Table) -> dict[str, ir.Value]:
    """`label`: bit i says that LABELS[i] is 1. `label_known`: bit i says that it was observed."""
    label = [ibis.ifelse(table[name].coalesce(0) == 1, 1 << i, 0).cast("int64") for i, name in enumerate(LABELS)]
    known = [ibis.ifelse(table[name].notnull(), 1 << i, 0).cast("int64") for i, name in enumerate(LABELS)]
    return {"label": reduce(add, label), "label_known": reduce(add, known)}


def _with_items(own: ir.Table, items: ir.Table) -> ir.Table:
    facts = items.select("item_id", "item_row", "author_id", "tag", item_ms="duration_ms")
    joined = own.join(facts, "item_id")
    return joined.mutate(duration_ms=joined.own_ms.coalesce(joined.item_ms)).select(*EVENT_COLUMNS)
