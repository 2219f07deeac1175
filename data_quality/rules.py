"""A rule: one number that SQL measures on a table, and the limits that Great Expectations holds it to.

    rule = never("play_time_ms", "play_time_ms < 0", "play_time_ms is not negative", CRITICAL)
    frame = measure(con, "SELECT * FROM read_parquet('part-0.parquet')", [rule])     # one row, one column a rule
    rule.expectation()                                                               # over that frame

The rows stay in DuckDB: all rules of a table are aggregates of one pass, so that ten million rows take seconds, and
the suite, its results and its Data Docs are Great Expectations' own. Only a rule that failed is looked up a second
time, for the rows to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`low <= value <= high`. `value` is an aggregate over the table, or with `whole` a query of its own.

    `bad` is the condition of a row that breaks the rule, if single rows can; then the value counts them. `shown` is a
    query of offending rows where `bad` cannot tell. In both queries the table is called `t`.
    """

    name: str
    says: str
    severity: FailureSeverity
    value: str
    column: str | None = None
    low: float | None = None
    high: float | None = None
    bad: str | None = None
    whole: bool = False
    shown: str | None = None

    def expectation(self) -> Expectation:
        """The rule on the frame of `measure`."""
        return gxe.ExpectColumnMaxToBeBetween(
            column=self.name, min_value=self.low, max_value=self.high, notes=self.says, severity=self.severity
        )


def never(column: str, bad: str, says: str, severity: FailureSeverity) -> Rule:
    """No row meets the condition `bad`."""
    return Rule(
        name=f"rows that break: {says}",
        column=column,
        says=says,
        severity=severity,
        value=f"count(*) FILTER ({bad})",
        high=0,
        bad=bad,
    )


def within(
    column: str | None,
    value: str,
    says: str,
    severity: FailureSeverity,
    *,
    low: float | None = None,
    high: float | None = None,
    name: str | None = None,
) -> Rule:
    """An aggregate lies between limits."""
    return Rule(name=name or says, column=column, says=says, severity=severity, value=value, low=low, high=high)


def unique(columns: Sequence[str], says: str, severity: FailureSeverity) -> Rule:
    """No two rows have the same values of all these columns."""
    key = ", ".join(columns)
    return Rule(
        name=f"rows that break: {says}",
        column=key,
        says=says,
        severity=severity,
        value=f"SELECT (SELECT count(*) FROM t) - (SELECT count(*) FROM (SELECT DISTINCT {key} FROM t))",
        high=0,
        whole=True,
        shown=f"SELECT {key}, count(*) AS times FROM t GROUP BY {key} HAVING count(*) > 1 ORDER BY {key}",
    )


def measure(con: duckdb.DuckDBPyConnection, table: str, rules: Sequence[Rule]) -> pd.DataFrame:
    """One row with the value of each rule; `table` is a query. A value that cannot be told (no rows) is NaN."""
    values: dict[str, Any] = {}
    passed = [rule for rule in rules if not rule.whole]
    if passed:
        sums = ", ".join(rule.value for rule in passed)
        row = con.execute(f"SELECT {sums} FROM ({table}) t").fetchall()[0]
        values = {rule.name: value for rule, value in zip(passed, row, strict=True)}
    for rule in rules:
        if rule.whole:
            values[rule.name] = con.execute(f"WITH t AS ({table}) {rule.value}").fetchall()[0][0]
    assert len(values) == len(rules), "two rules of a table have one name"
    return pd.DataFrame({n: [float("nan") if value is None else float(value)] for n, value in values.items()})


def examples(
    con: duckdb.DuckDBPyConnection, table: str, rule: Rule, index: Sequence[str], limit: int
) -> list[dict[str, Any]]:
    """The first offending rows of a rule: the index columns, and the rule's own."""
    if rule.shown:
        query = rule.shown
    elif rule.bad:
        names = list(dict.fromkeys([*index, *([rule.column] if rule.column else [])]))
        query = f"SELECT {', '.join(names)} FROM t WHERE {rule.bad}"
    else:
        return []
    found = con.execute(f"WITH t AS ({table}) {query} LIMIT {limit}")
    columns = [entry[0] for entry in found.description]
    return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]
