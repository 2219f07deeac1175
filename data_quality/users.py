"""The suite of the users known at the end of a day, and of their static features.

suite(["age_band", ...]) -> the list of expectations over `batches.entity_frame(..., "users", day)`
"""

from __future__ import annotations

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from data_quality import CRITICAL, WARNING

MAX_VALUES = 8190
"""A static feature is coded as 0..8191, two of them for missing and unknown; more values than that share codes."""

OBSERVED = 0.05


def suite(features: list[str]) -> list[Expectation]:
    """features: the columns beside user_id."""
    found: list[Expectation] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are users", severity=CRITICAL),
        gxe.ExpectColumnValuesToNotBeNull(column="user_id", notes="user_id is never missing", severity=CRITICAL),
        gxe.ExpectColumnValuesToBeUnique(column="user_id", notes="a user stands there once", severity=CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="user_id", min_value=0, notes="user_id is not negative", severity=CRITICAL
        ),
    ]
    for name in features:
        found.append(
            gxe.ExpectColumnUniqueValueCountToBeBetween(
                column=name, max_value=MAX_VALUES, notes=f"{name} is a category, not an id", severity=WARNING
            )
        )
        found.append(
            gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
                column=name, min_value=OBSERVED, notes=f"{name} is known for some users", severity=WARNING
            )
        )
    return found
