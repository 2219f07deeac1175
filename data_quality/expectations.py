"""Great Expectations over the measured frames: one suite a check, results as JSON entries, and the Data Docs.

    results = run_checks(con, [Check.of(con, "items", "2022-05-05", query, rules, ("item_id",)), ...], day, docs)

The context lives in memory: suites are code, nothing of it is kept between runs. Quantile expectations are not used:
in 1.24.1 they end the run with a TypeError under NumPy 2.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import great_expectations as gx
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.store.store import DataDocsSiteConfigTypedDict
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

from data_quality import intake
from data_quality.rules import Rule, examples, measure

EXAMPLES = 3
_INDEX = {"schema": ["partition", "column"], "intake": ["partition"]}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One suite on one frame. Where the frame was measured, `rules` and `query` say how, to look examples up."""

    table: str
    day: str
    frame: pd.DataFrame
    expectations: list[Expectation]
    rules: tuple[Rule, ...] = ()
    query: str = ""
    index: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        con: duckdb.DuckDBPyConnection,
        table: str,
        day: str,
        query: str,
        rules: Sequence[Rule],
        index: tuple[str, ...],
    ) -> Check:
        """Measure the rules on a query."""
        return cls(
            table=table,
            day=day,
            frame=measure(con, query, rules),
            expectations=[rule.expectation() for rule in rules],
            rules=tuple(rules),
            query=query,
            index=index,
        )


def schema_check(day: str, frame: pd.DataFrame) -> Check:
    """The columns of every partition against the contract."""
    return Check(table="schema", day=day, frame=frame, expectations=intake.schema_suite())


def run_checks(
    con: duckdb.DuckDBPyConnection, checks: list[Check], day: str, docs: Path | None
) -> list[dict[str, Any]]:
    """Run the checks and render their docs; a flat entry an expectation, in the order of the suites."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    if docs:
        site: DataDocsSiteConfigTypedDict = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        }
        context.add_data_docs_site("docs", site)
    source = context.data_sources.add_pandas("lake")
    # The run is named and dated after the day that it is about, so that a second one says the same.
    midnight = dt.datetime.combine(dt.date.fromisoformat(day), dt.time(), tzinfo=dt.UTC)
    results = []
    for check in checks:
        name = f"{check.table}-{check.day}"
        # The order that the library reports in is its own: the position is carried along.
        for number, expectation in enumerate(check.expectations):
            expectation.meta = {"number": number}
        suite = context.suites.add(gx.ExpectationSuite(name, expectations=check.expectations))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("day")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[context.validation_definitions.add(definition)],
            result_format={
                "result_format": "SUMMARY",
                "partial_unexpected_count": EXAMPLES,
                **({"unexpected_index_column_names": _INDEX[check.table]} if check.table in _INDEX else {}),
            },
        )
        outcome = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": check.frame}, run_id=RunIdentifier(run_name=day, run_time=midnight)
        )
        (found,) = outcome.run_results.values()
        for result in sorted(found.results, key=_number):
            results.append(_measured(con, check, result) if check.rules else _entry(check, result))
    if docs:
        context.build_data_docs(site_names=["docs"])
    return results


def sentence(entry: dict[str, Any]) -> str:
    """A failed entry in one line."""
    rows = f", {entry['unexpected_count']:,} rows" if entry["unexpected_count"] else ""
    shown = (
        f" (observed {entry['observed']}, expected {entry['expected']})" if entry["unexpected_count"] is None else ""
    )
    example = f", such as {entry['example'][0]}" if entry["example"] else ""
    return f"{entry['table']} {entry['day']}: not so that {entry['rule']}{shown}{rows}{example}"


def _measured(con: duckdb.DuckDBPyConnection, check: Check, result: Any) -> dict[str, Any]:
    """The entry of a rule; one about rows has their number, and some of them if it failed."""
    rule = check.rules[_number(result)]
    entry = _entry(check, result) | {"column": rule.column}
    if rule.bad or rule.shown:
        count = entry["observed"] if isinstance(entry["observed"], int) else None
        entry |= {"unexpected_count": count, "observed": count}
        if count and not entry["success"]:
            entry["example"] = [plain(row) for row in examples(con, check.query, rule, check.index, EXAMPLES)]
    return entry


def _number(result: Any) -> int:
    return result.expectation_config.meta["number"]


def _entry(check: Check, result: Any) -> dict[str, Any]:
    config, seen = result.expectation_config, result.result
    crashed = not result.success and not seen
    share = seen.get("unexpected_percent")
    kwargs = {k: v for k, v in config.kwargs.items() if k not in ("batch_id", "column", "column_list", "value_set")}
    return {
        "table": check.table,
        "day": check.day,
        "rule": config.notes,
        "expectation": config.type,
        "column": config.kwargs.get("column"),
        "expected": {k: plain(v) for k, v in kwargs.items()},
        # An expectation that cannot be computed says nothing of the data, so it must not pass for a warning.
        "severity": "critical" if crashed else str(config.severity.value),
        "success": bool(result.success),
        "observed": _crash(result) if crashed else plain(seen.get("observed_value", share and share / 100)),
        "unexpected_count": plain(seen.get("unexpected_count")),
        "example": [plain(row) for row in seen.get("partial_unexpected_index_list") or []][:EXAMPLES],
    }


def _crash(result: Any) -> str:
    messages = [e.get("exception_message", "") for e in result.exception_info.values() if isinstance(e, dict)]
    return f"could not be computed: {messages[0] if messages else result.exception_info}"


def plain(value: Any) -> Any:
    """A value as JSON has it: whole floats become ints (pandas makes floats of ints with nulls), NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dt.datetime | dt.date):
        return None if pd.isna(value) else value.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else round(value, 6)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
