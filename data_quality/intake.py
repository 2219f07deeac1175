"""Two small suites beside those of the tables: the columns of each file, and what the ingest had to drop or mend.

schema_suite()  over `batches.schema_frame`: one row a column
intake_suite()  over `batches.intake_frame`: one row a partition, shares of the rows read
"""

from __future__ import annotations

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from data_quality import CRITICAL, WARNING

LIMITS = {
    "duplicates": (0.10, "exact duplicates are at most 10 %"),
    "quarantined": (0.01, "quarantined rows are at most 1 %"),
    "mended": (0.01, "values made null are at most 1 %"),
    "near_day": (0.05, "times just outside the log day are at most 5 %"),
    "unknown": (0.05, "rows whose user or item the feature files do not know are at most 5 %"),
}
QUARANTINED_CRITICAL = 0.20


def schema_suite() -> list[Expectation]:
    """The columns and types of the contract, no more and no less."""
    return [
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="type", column_B="contract_type", notes="the file has the contract's columns", severity=CRITICAL
        )
    ]


def intake_suite() -> list[Expectation]:
    """Limits on what the ingest counted; real logs have some of each."""
    found: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(column=name, max_value=limit, notes=rule, severity=WARNING)
        for name, (limit, rule) in LIMITS.items()
    ]
    found.append(
        gxe.ExpectColumnValuesToBeBetween(
            column="quarantined",
            max_value=QUARANTINED_CRITICAL,
            notes="quarantined rows are at most 20 %",
            severity=CRITICAL,
        )
    )
    return found
