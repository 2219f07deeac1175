"""The checkpoint: run every suite over the days of a lake, write results and Data Docs, and stop on critical failures.

    result = validate(lake=Path("lake"), day="2022-05-05", days=["2022-05-04", "2022-05-05"], out=Path("quality"))
    require(result)

Leaves `results.json` (one entry an expectation, with example rows) and `docs/index.html`, the Data Docs.
The context lives in memory: suites are code, nothing of it is kept between runs. Quantile expectations are not used:
in 1.24.1 they end the run with a TypeError under NumPy 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import great_expectations as gx
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.store.store import DataDocsSiteConfigTypedDict
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

from data_quality import batches, impressions, intake, items, users

EXAMPLES = 3
_INDEX = {"impressions": ["user_id", "item_id", "event_time"], "items": ["item_id"], "users": ["user_id"]}
_INDEX |= {"schema": ["column"], "intake": ["partition"]}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One suite on one frame."""

    table: str
    day: str
    frame: pd.DataFrame
    expectations: list[Expectation]


def validate(
    *, lake: Path, day: str, days: list[str], out: Path, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """Check the impressions of `days` and the items and users of `day`; failures are in the result, not raised.

    A table whose columns are not the contract's is not looked at further. Raises DataError if a partition is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    partitions = [f"impressions/dt={d}" for d in days] + [f"items/dt={day}", f"users/dt={day}"]
    schema = pd.concat([batches.schema_frame(lake, name) for name in partitions], ignore_index=True)
    broken = set(schema.loc[schema["type"] != schema["contract_type"], "partition"])
    checks = [Check(table="schema", day=day, frame=schema, expectations=intake.schema_suite())]
    checks.append(
        Check(table="intake", day=day, frame=batches.intake_frame(lake, partitions), expectations=intake.intake_suite())
    )
    checks += _table_checks(lake, day, [name for name in partitions if name not in broken])
    results = _run(checks, day, out / "docs")
    failed = [r for r in results if not r["success"]]
    result = {
        "critical_failed": sum(r["severity"] == "critical" for r in failed),
        "warning_failed": sum(r["severity"] == "warning" for r in failed),
        "results": results,
    }
    (out / "results.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for r in failed:
        progress(f"{r['severity']}: {_sentence(r)}")
    progress(
        f"{len(results)} expectations, {result['critical_failed']} critical and {result['warning_failed']} warnings"
    )
    return result


def require(result: dict[str, Any]) -> None:
    """Raise ValueError naming each critical failure of a result of `validate`."""
    failed = [r for r in result["results"] if r["severity"] == "critical" and not r["success"]]
    if failed:
        lines = "\n  ".join(_sentence(r) for r in failed)
        raise ValueError(
            f"data quality: {len(failed)} critical expectation(s) failed:\n  {lines}\n"
            "Mend the source and run the day again from its ingest; results.json has every result"
        )


def _table_checks(lake: Path, day: str, partitions: list[str]) -> list[Check]:
    """The checks of the partitions whose columns are those of the contract."""
    checks, last = [], date.fromisoformat(day)
    # An impression is judged against the items and users; without them, only the schema check speaks.
    entities = {name.split("/")[0] for name in partitions} >= {"items", "users"}
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        for name in partitions:
            table, _, dt = name.partition("/dt=")
            d = date.fromisoformat(dt)
            if table == "impressions":
                if not entities:
                    continue
                frame = batches.impressions_frame(con, lake, d, last)
                expectations = impressions.suite(batches.trailing(con, lake, d))
            else:
                frame = batches.entity_frame(con, lake, table, d)
                if table == "items":
                    expectations = items.suite(batches.item_rows_before(lake, d))
                else:
                    expectations = users.suite([column for column in frame.columns if column != "user_id"])
            checks.append(Check(table=table, day=dt, frame=frame, expectations=expectations))
    return checks


def _run(checks: list[Check], day: str, docs: Path) -> list[dict[str, Any]]:
    """Run the checks and render their docs; a flat entry an expectation, in the order of the suites."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    site: DataDocsSiteConfigTypedDict = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
    }
    context.add_data_docs_site("docs", site)
    source = context.data_sources.add_pandas("lake")
    # The run is named and dated after the day that it is about, so that a second one says the same.
    midnight = datetime.combine(date.fromisoformat(day), datetime.min.time(), tzinfo=UTC)
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
                "unexpected_index_column_names": _INDEX[check.table],
            },
        )
        outcome = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": check.frame}, run_id=RunIdentifier(run_name=day, run_time=midnight)
        )
        (found,) = outcome.run_results.values()
        ordered = sorted(found.results, key=_number)
        results += [_entry(check, result) for result in ordered]
    context.build_data_docs(site_names=["docs"])
    return results


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
        "column": config.kwargs.get("column") or ", ".join(config.kwargs.get("column_list", [])) or None,
        "expected": {k: _plain(v) for k, v in kwargs.items()},
        # An expectation that cannot be computed says nothing of the data, so it must not pass for a warning.
        "severity": "critical" if crashed else str(config.severity.value),
        "success": bool(result.success),
        "observed": _crash(result) if crashed else _plain(seen.get("observed_value", share and share / 100)),
        "unexpected_count": _plain(seen.get("unexpected_count")),
        "example": [_plain(row) for row in seen.get("partial_unexpected_index_list") or []][:EXAMPLES],
    }


def _crash(result: Any) -> str:
    messages = [e.get("exception_message", "") for e in result.exception_info.values() if isinstance(e, dict)]
    return f"could not be computed: {messages[0] if messages else result.exception_info}"


def _sentence(entry: dict[str, Any]) -> str:
    rows = f", {entry['unexpected_count']:,} rows" if entry["unexpected_count"] else ""
    shown = (
        f" (observed {entry['observed']}, expected {entry['expected']})" if entry["unexpected_count"] is None else ""
    )
    example = f", such as {entry['example'][0]}" if entry["example"] else ""
    return f"{entry['table']} {entry['day']}: not so that {entry['rule']}{shown}{rows}{example}"


def _plain(value: Any) -> Any:
    """A value as JSON has it: whole floats become ints (pandas makes floats of ints with nulls), NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, pd.Timestamp):
        return None if pd.isna(value) else value.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else round(value, 6)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
