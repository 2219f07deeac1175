"""The suite of a day's impressions. Critical: what no later step can bear. Warning: what a person should look at.

suite(Trailing()) -> the rules over `tables.Tables.query("impressions", day)`
"""

from __future__ import annotations

from data_quality import CRITICAL, WARNING
from data_quality.intake import LIMITS
from data_quality.rules import Rule, never, unique, within
from data_quality.tables import Trailing
from datasets.cleaning import MAX_PLAYS, TOLERANCE
from datasets.contract import LABELS, POSITIVE_LABELS

KEY = ("user_id", "item_id", "event_time")
VOLUME = (0.5, 2.0)  # of the median of the trailing days
VOLUME_CRITICAL = 0.1
RATE = 3.0  # a label's rate may be this many times the trailing one, or this many times smaller
RATE_ROWS = 30  # with fewer expected ones a day, a rate says nothing
KNOWN_LOSS = 0.05  # by which the share of known values of a label may fall
LAST_HOURS = 6  # in which the log must have rows, else its end is missing

_TOLERANCE_MS = int(TOLERANCE.total_seconds() * 1000)


def suite(before: Trailing) -> list[Rule]:
    """before: what the trailing week looked like."""
    return [*_contract(), *_references(), *_labels(before), *_volume(before)]


def copies(source: str) -> Rule:
    """For logs that no ingest has counted: the exact copies in `source`, of which the table has one each."""
    limit, says = LIMITS["duplicates"]
    share = f"SELECT 1 - (SELECT count(*) FROM t) / (SELECT greatest(count(*), 1) FROM {source})"
    return Rule(name=says, says=says, severity=WARNING, value=share, high=limit, whole=True)


def _contract() -> list[Rule]:
    outside = f"ms < start_ms - {_TOLERANCE_MS} OR ms >= end_ms + {_TOLERANCE_MS}"
    played = f"duration_ms > 0 AND play_time_ms > {MAX_PLAYS} * duration_ms"
    return [
        within(None, "count(*)", "there are impressions", CRITICAL, low=1),
        *(never(name, f"{name} IS NULL", f"{name} is never missing", CRITICAL) for name in KEY),
        *(
            never(name, f"{name} < 0", f"{name} is not negative", CRITICAL)
            for name in ("user_id", "item_id", "play_time_ms", "position")
        ),
        unique(KEY, "an event stands there once", CRITICAL),
        never("event_time", outside, "the time lies in the log day, give or take the tolerance", CRITICAL),
        never("duration_ms", "duration_ms < 1", "a known duration is positive", CRITICAL),
        never("play_time_ms", played, f"the play time is at most {MAX_PLAYS} durations", CRITICAL),
        within(
            "play_time_ms",
            "count(play_time_ms) / count(*)",
            "the play time is mostly known",
            WARNING,
            low=0.8,
        ),
    ]


def _references() -> list[Rule]:
    return [
        never(
            f"{table}_id",
            f"{table}_id IS NOT NULL AND NOT {table}_known",
            f"every {table} is in the {table}s table",
            CRITICAL,
        )
        for table in ("item", "user")
    ]


def _labels(before: Trailing) -> list[Rule]:
    found = [never(name, f"{name} NOT IN (0, 1)", f"{name} is 0 or 1", CRITICAL) for name in LABELS]
    found += [
        within(None, "avg(is_positive_known)", "a positive signal is observed", CRITICAL, low=0.99),
        within(
            None, "avg(is_positive)", "there are positives, and not everything is one", CRITICAL, low=0.001, high=0.95
        ),
    ]
    for name, known in before.known.items():
        if known:
            found.append(
                within(
                    name,
                    f"count({name}) / count(*)",
                    f"{name} is observed as often as in the days before",
                    CRITICAL if name in POSITIVE_LABELS else WARNING,
                    low=round(max(known - KNOWN_LOSS, 0), 6),
                )
            )
        if before.rate[name] * (before.rows or 0) >= RATE_ROWS:
            found.append(
                within(
                    name,
                    f"avg({name})",
                    f"the rate of {name} is like that of the days before",
                    WARNING,
                    low=round(before.rate[name] / RATE, 6),
                    high=round(before.rate[name] * RATE, 6),
                )
            )
    return found


def _volume(before: Trailing) -> list[Rule]:
    reaches = within(
        "event_time",
        "(max(end_ms) - max(ms)) / 3.6e6",
        "the log reaches the last hours of its day",
        WARNING,
        high=LAST_HOURS,
    )
    if before.rows is None:
        return [reaches]
    low, high = (int(before.rows * share) for share in VOLUME)
    return [
        reaches,
        within(None, "count(*)", "as many rows as in the days before", WARNING, low=low, high=high),
        within(None, "count(*)", "the day is not cut off", CRITICAL, low=int(before.rows * VOLUME_CRITICAL)),
    ]
