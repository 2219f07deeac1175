"""The top line of a day's report: one sentence, and a mark for recall, legality, data quality, time and memory.

`mark` is good, warn, bad, or none (not known). Judged from the numbers that collect.py gathered, and from nothing else.
"""

from __future__ import annotations

from typing import Any

from releases.gates import METRIC

AIM_OVER_FLOOR = 1.1  # the aim: recall 10 % above the better of the most-popular floors


def verdict(report: dict[str, Any], why: dict[str, str]) -> dict[str, Any]:
    """One sentence and the numbers of the top line; `why` says what is missing, by step, in the order of the day."""
    mark, headline, reasons = _headline(report["release"], why)
    totals, whole = report["totals"], not report["totals"]["steps_missing"]
    return {
        "mark": mark,
        "headline": headline,
        "reasons": reasons,
        "recall": _recall(report["evaluation"], report["release"]),
        "legality": _legality(report["evaluation"], report["serving"]),
        "quality": _quality(report["quality"]),
        "time": _within(totals["seconds_elapsed"] or totals["seconds"], totals["seconds_limit"], whole),
        "memory": _within(totals["peak_mib"], totals["peak_limit_mib"], whole),
    }


def _headline(release: dict[str, Any] | None, why: dict[str, str]) -> tuple[str, str, list[str]]:
    if release is None:
        return (
            "bad",
            "No release: the day is not finished",
            [next(iter(why.values()), "the publish step left no release")],
        )
    gate, in_production = release["gate"], release["channels"]["production"] == release["release_id"]
    if gate is None:
        state = "it is in production without a judgement" if in_production else "not yet judged by the gates"
        return "warn", f"Published; {state}", list(why.values())[:1]
    failed = [f"{c['name']} is {c['value']}, the limit is {c['limit']}" for c in gate["checks"] if not c["passed"]]
    if in_production:
        if gate["passed"]:
            return "good", "Released and promoted to production", []
        return "warn", "In production although a gate failed", failed
    if not gate["passed"]:
        return "bad", "Published, not promoted: a gate failed", failed
    if release["was_in_production"]:
        return "warn", f"It was in production; {release['channels']['production']} is now", []
    return "warn", "Published, gates passed, not promoted yet", list(why.values())[:1]


def _recall(evaluation: dict[str, Any] | None, release: dict[str, Any] | None) -> dict[str, Any]:
    rows = {row["name"]: row for row in (evaluation or {}).get("rows", ())}
    floors = {name: row[METRIC] for name, row in rows.items() if name.startswith("most_popular")}
    if "onerec" not in rows or not floors:
        return {"mark": "none", "value": None, "floor": None}
    value, name = rows["onerec"][METRIC], max(floors, key=lambda n: floors[n])
    gate = (release or {}).get("gate")
    # A later day may fall a little below the floor by noise: the gate decides, and the page says by how much.
    failed = any(METRIC in c["name"] and not c["passed"] for c in gate["checks"]) if gate else value < floors[name]
    aim = AIM_OVER_FLOOR * floors[name]
    return {
        "mark": "bad" if failed else "good" if value >= aim else "warn",
        "value": value,
        "floor": floors[name],
        "floor_name": name,
        "over_floor": value / floors[name] - 1 if floors[name] else None,
        "aim": aim,
        "production": rows["production"][METRIC] if "production" in rows else None,
    }


def _legality(evaluation: dict[str, Any] | None, serving: dict[str, Any] | None) -> dict[str, Any]:
    ranked = (evaluation or {}).get("legality")
    served, unseen = ((serving or {}).get(k) for k in ("legal", "unseen"))
    known = [v for v in (ranked, served, unseen) if v is not None]
    mark = "none" if not known else "bad" if min(known) < 1 else "good" if len(known) == 3 else "warn"
    return {"mark": mark, "ranked": ranked, "served": served, "served_unseen": unseen}


def _within(value: float | None, limit: float | None, whole: bool) -> dict[str, str]:
    if value is None or limit is None:
        return {"mark": "none"}
    return {"mark": "warn" if value > limit else "good" if whole else "none"}


def _quality(quality: dict[str, Any] | None) -> dict[str, Any]:
    if quality is None:
        return {"mark": "none", "checks": None, "critical_failed": None, "warning_failed": None}
    critical, warning = quality.get("critical_failed"), quality.get("warning_failed")
    mark = "none" if critical is None else "bad" if critical else "warn" if warning else "good"
    checks = len(quality.get("results", ()))
    return {"mark": mark, "checks": checks, "critical_failed": critical, "warning_failed": warning}
