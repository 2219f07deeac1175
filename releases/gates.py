"""Gates: may this release go to production? Every check has a name, a value and a limit.

    decision = decide(metrics=evaluation, data_quality=quality, serving_check=check, tokenizer=report, parity=None)

What is judged: legality, recall against the most popular items and against production, the slices that a mean hides,
the tokenizer's own gates, the data's quality, and what a real server answered: legal, unseen, whole, in time, and equal
to the program it was exported from. The decision is written
beside the release (`gates/<release_id>.json`): a release itself never changes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from releases.manifest import canonical_json, check_release_id
from releases.object_store import ObjectStore, digest_bytes

METRIC = "recall@50"
FLOOR_SHARE = 0.9  # of the best most-popular floor; daily noise on a few thousand users must not stop a good release
PRODUCTION_SHARE = 0.95  # of the production release on the same users, when this release is worse beyond noise
NOISE_SHARE = 0.85  # of the production release, when the paired interval of the difference holds 0
SLICES = ("new users", "heavy users", "new items")  # a mean hides them
SLICE_SHARE = 0.8  # of the reference in a slice: production, or the most popular items at a first release
SLICE_USERS = 100  # fewer say nothing
PARITY_TOP1, PARITY_OVERLAP = 0.999, 0.99  # shares of users and items where a program answers as the model does
LATENCY_MS = 5_000.0  # p99 of the serving check, on whatever machine makes the day: an outage, not a regression


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One gate: `value` must reach `limit` (both as shown to a person), or stay at or below it where `side` says so.

    `interval`: of the difference that was judged, where one was; `note`: why nothing was to be judged.
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    side: str = "at least"
    interval: list[float] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateDecision:
    """All checks; the release passes when each does."""

    passed: bool
    checks: list[Check]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def failures(self) -> list[str]:
        """One line a failed check, for a person."""
        return [f"{c.name} is {c.value}, {c.side} {c.limit} is asked for" for c in self.checks if not c.passed]


def decide(
    *,
    metrics: Mapping[str, Any],
    data_quality: Mapping[str, Any],
    serving_check: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
) -> GateDecision:
    """Judge a release.

    `metrics`: what evaluate returned (`rows`, `legality`). Without a row named "production" this is a first release,
    which must reach the best floor itself. `data_quality["critical_failed"]`: number of failed critical
    expectations. `serving_check`: what `serve_check` returned. `tokenizer`: the report of its refresh (`gates`);
    `parity`: what serving/parity.json holds, `{device: {"top1", "overlap", "passed"}}` of each exported program. Raises
    ValueError naming a number that is missing.
    """
    rows = {row["name"]: row for row in _need(metrics, "rows", "metrics")}
    recall = _need(_need(rows, "onerec", "metrics rows"), METRIC, "row onerec")
    floors = [row[METRIC] for name, row in rows.items() if name.startswith("most_popular")]
    if not floors:
        raise ValueError("metrics rows hold no most_popular floor; evaluate must write it in the same run")
    production = rows.get("production")
    share = FLOOR_SHARE if production else 1.0
    checks = [
        _at_least("legality", _need(metrics, "legality", "metrics"), 1.0),
        _at_least(f"{METRIC} against the best most-popular floor", recall, share * max(floors)),
    ]
    if production:
        worst, best = _need(production, f"{METRIC}_gain_interval", "row production")
        share = NOISE_SHARE if worst <= 0 <= best else PRODUCTION_SHARE
        limit = share * _need(production, METRIC, "row production")
        checks.append(_at_least(f"{METRIC} against production", recall, limit, interval=[worst, best]))
    checks += [_slice(name, metrics.get("slices") or []) for name in SLICES]
    for gate in (tokenizer or {}).get("gates", []):
        if gate["passed"] is not None:
            checks.append(_either(f"tokenizer {gate['gate']}", gate["value"], gate["side"], gate["limit"]))
    failed = _need(data_quality, "critical_failed", "data_quality")
    checks.append(_either("failed critical data-quality checks", failed, "at most", 0))
    for name in ("legal", "unseen"):
        checks.append(_at_least(f"served items {name}", _need(serving_check, name, "serving_check"), 1.0))
    checks.append(_either("served answers degraded", serving_check.get("degraded", 0), "at most", 0))
    if latency := serving_check.get("latency_ms"):
        checks.append(_either("served p99 in ms", _need(latency, "p99", "latency_ms"), "at most", LATENCY_MS))
    for device, verdict in sorted((parity or {}).items()):
        for key, what, limit in (("top1", "first item", PARITY_TOP1), ("overlap", "top items", PARITY_OVERLAP)):
            value = _need(verdict, key, f"parity of {device}")
            # A program that is not equal enough is not in the release, which is then served by the model itself.
            note = "" if verdict.get("passed") else "not exported: the release is served eagerly there"
            check = _either(
                f"exported program for {device}, {what} as the model's", value, "at least", limit, note=note
            )
            checks.append(dataclasses.replace(check, passed=True) if note else check)
    return GateDecision(passed=all(c.passed for c in checks), checks=checks)


def record_decision(store: ObjectStore, release_id: str, decision: GateDecision) -> None:
    """Keep the newest decision about a release; a concurrent writer makes it fail with ConflictError."""
    key = f"gates/{check_release_id(release_id)}.json"
    old = store.get(key)
    store.compare_and_swap(key, canonical_json(decision.as_dict()), None if old is None else digest_bytes(old))


def read_decision(store: ObjectStore, release_id: str) -> dict[str, Any] | None:
    """The recorded decision about a release as a dict, None when it was never judged."""
    data = store.get(f"gates/{check_release_id(release_id)}.json")
    return None if data is None else json.loads(data)


def _at_least(name: str, value: float | None, limit: float, interval: list[float] | None = None) -> Check:
    return _either(name, value, "at least", limit, interval)


def _either(
    name: str, value: float | None, side: str, limit: float, interval: list[float] | None = None, note: str = ""
) -> Check:
    if value is None or not math.isfinite(value):
        return Check(name=name, value=None, limit=limit, passed=False, side=side, interval=interval, note=note)
    passed = value >= limit if side == "at least" else value <= limit
    return Check(name=name, value=value, limit=limit, passed=passed, side=side, interval=interval, note=note)


def _slice(name: str, slices: Sequence[Mapping[str, Any]]) -> Check:
    """A slice fails when it is worse than its reference beyond noise and by more than SLICE_SHARE leaves."""
    row = next((r for r in slices if r["name"] == name), None)
    title = f"{METRIC} of {name}"
    if row is None or row["users"] < SLICE_USERS:
        few = "nobody" if row is None else f"{row['users']} users"
        value = None if row is None else row[METRIC]
        return Check(name=title, value=value, limit=0.0, passed=True, note=f"not judged: {few} in the slice")
    worst, best = row["gain_interval"]
    limit = SLICE_SHARE * row["reference"] if best < 0 else 0.0
    note = f"{row['users']} users, {row['reference_name']} {row['reference']:.4g}"
    return _either(title, row[METRIC], "at least", limit, [worst, best], note)


def _need(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        raise ValueError(f"{where} hold no {key!r} (they hold {sorted(mapping)}); run the step that writes it again")
    return mapping[key]
