"""Two small suites beside those of the tables: the columns of each file, and what the ingest had to drop or mend.

schema_suite()  over `tables.schema_frame`: one row a column
intake_suite()  over `intake_frame`: one row a partition, shares of the rows read
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.expectations.expectation import Expectation

from data_quality import CRITICAL, WARNING
from datasets.cleaning import QUARANTINED

LIMITS = {
    "duplicates": (0.10, "exact duplicates are at most 10 %"),
    "quarantined": (0.01, "quarantined rows are at most 1 %"),
    "mended": (0.01, "values made null are at most 1 %"),
    "late": (0.05, "late rows are at most 5 %"),
    "ahead": (0.05, "rows ahead of their day are at most 5 %"),
    "unknown": (0.05, "rows whose user or item the feature files do not know are at most 5 %"),
}
QUARANTINED_CRITICAL = 0.20


MENDED = ("play_time_negative", "play_time_too_long", "label_not_binary")


def intake_frame(manifests: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row a partition: what the ingest counted there, as shares of the rows it read."""
    rows = []
    for name, manifest in manifests.items():
        counts = manifest["counts"]
        read = max(counts.get("rows_read", 0), 1)
        shares = {
            "duplicates": counts.get("duplicates", 0),
            "quarantined": sum(counts.get(rule, 0) for rule in QUARANTINED),
            "mended": sum(counts.get(rule, 0) for rule in MENDED),
            "late": counts.get("late", 0),
            "ahead": counts.get("ahead_of_day", 0),
            "unknown": max(counts.get("unknown_item", 0), counts.get("unknown_user", 0)),
        }
        rows.append({"partition": name} | {key: count / read for key, count in shares.items()})
    return pd.DataFrame(rows)


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
