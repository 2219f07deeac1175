"""The suite of the items known at the end of a day: the catalogue that may be recommended.

suite(rows_before=None) -> the list of expectations over `batches.entity_frame(..., "items", day)`
"""

from __future__ import annotations

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from data_quality import CRITICAL, WARNING

DESCRIBED = 0.9
AUTHORED = 0.95
KEPT = 0.9  # of the items of the snapshot before


def suite(rows_before: int | None) -> list[Expectation]:
    """rows_before: rows of the snapshot before this one, if there is one."""
    found: list[Expectation] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are items", severity=CRITICAL),
        gxe.ExpectColumnValuesToNotBeNull(column="item_id", notes="item_id is never missing", severity=CRITICAL),
        gxe.ExpectColumnValuesToBeUnique(column="item_id", notes="an item stands there once", severity=CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="item_id", min_value=0, notes="item_id is not negative", severity=CRITICAL
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="author_id", notes="author_id is never missing", severity=CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="author_id", min_value=-1, notes="author_id is an id, or -1 for unknown", severity=CRITICAL
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="duration_ms", min_value=1, notes="a known duration is positive", severity=CRITICAL
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="author_id", min_value=0, mostly=AUTHORED, notes="most items have a known author", severity=WARNING
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="is_described",
            min_value=DESCRIBED,
            notes="most items have a tag, a text or an embedding",
            severity=WARNING,
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="hours_after_day", max_value=0, notes="no item is uploaded after the day", severity=WARNING
        ),
    ]
    if rows_before is not None:
        found.append(
            gxe.ExpectTableRowCountToBeBetween(
                min_value=int(rows_before * KEPT), notes="the catalogue has not shrunk", severity=WARNING
            )
        )
    return found
