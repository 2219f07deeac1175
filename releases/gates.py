"""Gates: may this release go to production? Every check has a name, a value and a limit.

    decision = decide(metrics=evaluation, data_quality=quality, serving_check=check)

The decision is written beside the release (`gates/<release_id>.json`): a release itself never changes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from releases.manifest import canonical_json, check_release_id
from releases.object_store import ObjectStore, digest_bytes

METRIC = "recall@50"
FLOOR_SHARE = 0.9  # of the best most-popular floor; daily noise on a few thousand users must not stop a good release
PRODUCTION_SHARE = 0.95  # of the production release on the same users, when this release is worse beyond noise
NOISE_SHARE = 0.85  # of the production release, when the paired interval of the difference holds 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One gate: `value` must reach `limit` (both as shown to a person)."""

    name: str
    value: float | None
    limit: float
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateDecision:
    """All checks; the release passes when each does."""

    passed: bool
    checks: list[Check]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def failures(self) -> list[str]:
        """One line a failed check, for a person."""
        return [f"{c.name} is {c.value}, the limit is {c.limit}" for c in self.checks if not c.passed]


def decide(
    *,
    metrics: Mapping[str, Any],
    data_quality: Mapping[str, Any],
    serving_check: Mapping[str, Any],
) -> GateDecision:
    """Judge a release.

    `metrics`: what evaluate returned (`rows`, `legality`). Without a row named "production" this is a first release,
    which must reach the best floor itself. `data_quality["critical_failed"]`: number of failed critical
    expectations. `serving_check`: what `serve_check` returned. Raises ValueError naming a number that is missing.
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
        checks.append(_at_least(f"{METRIC} against production", recall, limit))
    failed = _need(data_quality, "critical_failed", "data_quality")
    checks.append(Check(name="failed critical data-quality checks", value=failed, limit=0, passed=failed == 0))
    for name in ("legal", "unseen"):
        checks.append(_at_least(f"served items {name}", _need(serving_check, name, "serving_check"), 1.0))
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


def _at_least(name: str, value: float | None, limit: float) -> Check:
    if value is None or not math.isfinite(value):
        return Check(name=name, value=None, limit=limit, passed=False)
    return Check(name=name, value=value, limit=limit, passed=value >= limit)


def _need(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        raise ValueError(f"{where} hold no {key!r} (they hold {sorted(mapping)}); run the step that writes it again")
    return mapping[key]
