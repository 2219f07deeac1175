"""The suite of the users known at the end of a day, and of their static features.

suite(["age_band", ...]) -> the rules over `tables.Tables.query("users", day)`
"""

from __future__ import annotations

from data_quality import CRITICAL, WARNING
from data_quality.rules import Rule, never, unique, within
from datasets.contract import identifier

MAX_VALUES = 8190
"""A static feature is coded as 0..8191, two of them for missing and unknown; more values than that share codes."""

OBSERVED = 0.05
KEPT = 0.9  # of the users of the snapshot before


def suite(features: list[str], rows_before: int | None = None) -> list[Rule]:
    """features: the columns beside user_id. rows_before: rows of the snapshot before this one, if there is one."""
    found = [
        within(None, "count(*)", "there are users", CRITICAL, low=1),
        never("user_id", "user_id IS NULL", "user_id is never missing", CRITICAL),
        unique(("user_id",), "a user stands there once", CRITICAL),
        never("user_id", "user_id < 0", "user_id is not negative", CRITICAL),
    ]
    if rows_before is not None:
        low = int(rows_before * KEPT)
        found.append(within(None, "count(*)", "the users have not become fewer", WARNING, low=low))
    for name in features:
        column = identifier(name)
        found.append(
            within(name, f"count(DISTINCT {column})", f"{name} is a category, not an id", WARNING, high=MAX_VALUES)
        )
        found.append(
            within(name, f"count({column}) / count(*)", f"{name} is known for some users", WARNING, low=OBSERVED)
        )
    return found
