"""How the page writes numbers and names: the filters of template.html. A number that is not known is a dash."""

from __future__ import annotations

from typing import Any

from jinja2 import Undefined

from datasets import cleaning

BOUNDS = {"min_value": "at least", "max_value": "at most"}


def number(value: Any, digits: int = 4) -> str:
    """0.1957, a whole number as it is, a dash when unknown."""
    return "–" if _unknown(value) else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def within(values: Any, key: str, digits: int = 3) -> str:
    """0.712 (0.704–0.721): a value of `values` with its 95 % interval, as far as they are known."""
    low, high = values.get(f"{key}_interval") or (None, None)
    text = number(values.get(key), digits)
    return text if _unknown(low) else f"{text} ({number(low, digits)}–{number(high, digits)})"


def share(value: Any) -> str:
    """93.4 %. Only exactly all is 100 %, only exactly nothing is 0 %."""
    if _unknown(value):
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    if 0.9995 <= value < 1:
        return "over 99.9 %"
    return "under 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def count(value: Any) -> str:
    return "–" if _unknown(value) else f"{value:,}"


def duration(seconds: Any) -> str:
    """9.4 s, 3 min 12 s."""
    if _unknown(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def gib(mib: Any) -> str:
    return "–" if _unknown(mib) else f"{mib / 1024:.2f} GiB"


def words(name: str) -> str:
    return name.replace("_", " ")


def fate(rule: str) -> str:
    """What the ingest does with the rows that a rule of datasets.cleaning counts; the rule may stand behind a table."""
    name = rule.rpartition(".")[2]
    if name == "rows_read":
        return ""
    return "dropped" if name == "duplicates" else "set aside" if name in cleaning.QUARANTINED else "kept"


def said(value: Any) -> str:
    """A small mapping or the first of several, as words: "user_id 3, item_id 5"."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, dict):
        return ", ".join(f"{BOUNDS.get(key, words(key))} {one}" for key, one in value.items())
    return "–" if value is None or isinstance(value, Undefined) else str(value)


def observed(result: dict[str, Any]) -> str:
    """What a check saw: the share of unexpected rows where it looks at rows, else the value itself."""
    value = result.get("observed")
    if _unknown(value):
        return said(value)
    return f"{share(value)} of the rows" if result.get("unexpected_count") is not None else f"{value:,}"


def by_rule(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result a rule, with the number of `days` it was checked on."""
    rules: dict[tuple, dict[str, Any]] = {}
    for result in results:
        key = tuple(result.get(k) for k in ("table", "column", "rule", "expectation", "severity"))
        rules.setdefault(key, {**result, "days": 0})["days"] += 1
    return list(rules.values())


def by_positives(objectives: dict[str, Any]) -> list[tuple[str, Any]]:
    """The objectives, those with most positives (and so the surest AUC) first."""
    return sorted(objectives.items(), key=lambda item: -item[1].get("positives", 0))


def _unknown(value: Any) -> bool:
    return not isinstance(value, int | float)


FILTERS = (number, within, share, count, duration, gib, words, fate, said, observed, by_positives, by_rule)
