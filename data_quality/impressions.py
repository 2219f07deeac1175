"""The suite of a day's impressions. Critical: what no later step can bear. Warning: what a person should look at.

suite(Trailing()) -> the list of expectations; each one's `notes` says the rule in plain words
"""

from __future__ import annotations

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from data_quality import CRITICAL, WARNING
from data_quality.batches import Trailing
from datasets.cleaning import MAX_PLAYS, TOLERANCE
from datasets.contract import LABELS, POSITIVE_LABELS

KEY = ["user_id", "item_id", "event_time"]
VOLUME = (0.5, 2.0)  # of the median of the trailing days
VOLUME_CRITICAL = 0.1
RATE = 3.0  # a label's rate may be this many times the trailing one, or this many times smaller
RATE_ROWS = 30  # with fewer expected ones a day, a rate says nothing
KNOWN_LOSS = 0.05  # by which the share of known values of a label may fall


def suite(before: Trailing) -> list[Expectation]:
    """Expectations of the columns of `batches.impressions_frame`."""
    return [*_contract(), *_references(), *_labels(before), *_volume(before)]


def _contract() -> list[Expectation]:
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are impressions", severity=CRITICAL),
        *(
            gxe.ExpectColumnValuesToNotBeNull(column=name, notes=f"{name} is never missing", severity=CRITICAL)
            for name in KEY
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=name, min_value=0, notes=f"{name} is not negative", severity=CRITICAL
            )
            for name in ("user_id", "item_id", "play_time_ms", "position")
        ),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=KEY, notes="an event stands there once", severity=CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="hours_outside_day",
            max_value=TOLERANCE.total_seconds() / 3600,
            notes="the time lies in the log day, give or take the tolerance",
            severity=CRITICAL,
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="duration_ms", min_value=1, notes="a known duration is positive", severity=CRITICAL
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="plays",
            max_value=MAX_PLAYS,
            notes=f"the play time is at most {MAX_PLAYS} durations",
            severity=CRITICAL,
        ),
        gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
            column="play_time_ms", min_value=0.8, notes="the play time is mostly known", severity=WARNING
        ),
    ]


def _references() -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column=f"{table}_known",
            value_set=[True],
            notes=f"every {table} is in the {table}s table",
            severity=CRITICAL,
        )
        for table in ("item", "user")
    ]


def _labels(before: Trailing) -> list[Expectation]:
    found: list[Expectation] = [
        gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[0, 1], notes=f"{name} is 0 or 1", severity=CRITICAL)
        for name in LABELS
    ]
    found += [
        gxe.ExpectColumnMeanToBeBetween(
            column="is_positive_known", min_value=0.99, notes="a positive signal is observed", severity=CRITICAL
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="is_positive",
            min_value=0.001,
            max_value=0.95,
            notes="there are positives, and not everything is one",
            severity=CRITICAL,
        ),
    ]
    for name, known in before.known.items():
        if known:
            found.append(
                gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
                    column=name,
                    min_value=round(max(known - KNOWN_LOSS, 0), 6),
                    notes=f"{name} is observed as often as in the days before",
                    severity=CRITICAL if name in POSITIVE_LABELS else WARNING,
                )
            )
        if before.rate[name] * (before.rows or 0) >= RATE_ROWS:
            found.append(
                gxe.ExpectColumnMeanToBeBetween(
                    column=name,
                    min_value=round(before.rate[name] / RATE, 6),
                    max_value=round(before.rate[name] * RATE, 6),
                    notes=f"the rate of {name} is like that of the days before",
                    severity=WARNING,
                )
            )
    return found


def _volume(before: Trailing) -> list[Expectation]:
    if before.rows is None:
        return []
    low, high = (int(before.rows * share) for share in VOLUME)
    return [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=low, max_value=high, notes="as many rows as in the days before", severity=WARNING
        ),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=int(before.rows * VOLUME_CRITICAL), notes="the day is not cut off", severity=CRITICAL
        ),
    ]
