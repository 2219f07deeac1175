"""What a tokenizer must be to be released: one table of limits, and the refusal that names the gate.

    require(judge(report))       # TokenizerRefused: "tokenizer refused: utilization is 0.41, at least 0.9 is asked for"

The defaults keep out what is broken (a collapsed codebook, IDs that moved, codes that mean nothing), not what is merely
worse than yesterday (docs/decisions/tokenizer.md). A value is judged only where it says something: `min_items` measured
items, and on the days on which the row says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


class TokenizerRefused(ValueError):
    """A tokenizer that failed a gate; the message names it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits; `min_items` is the smallest catalogue that is judged at all but by the exact gates.

    reconstruction: share of the variance that the codes lose, on a day of a fit.
    utilization, entropy: of the worst level, as shares of what so many items can reach.
    collision_before: share of the items whose nearest tuple is not theirs alone, on a day of a fit.
    collision_after: the same after assignment.
    changed: share of the items whose ID moved although neither they changed nor a refit took place.
    churn: share of known items whose first code moved at a refit.
    neighbours: how many times as often as random ones items of one first code share a tag or a viewer.
    """

    reconstruction: float = 0.9
    utilization: float = 0.9
    entropy: float = 0.4
    collision_before: float = 0.9
    collision_after: float = 0.0
    changed: float = 0.0
    churn: float = 0.9
    neighbours: float = 1.0
    min_items: int = 100


# gate, "at least" or "at most", the value in a report (None: nothing to judge)
_ROWS: tuple[tuple[str, str, Callable[[Report], float | None]], ...] = (
    ("reconstruction", "at most", lambda r: r["reconstruction_loss"] if r["refit"] else None),
    ("utilization", "at least", lambda r: min(r["utilization"]) / r["reachable"]),
    ("entropy", "at least", lambda r: _entropy(r)),
    ("collision_before", "at most", lambda r: r["collision_rate_before"] if r["refit"] else None),
    ("collision_after", "at most", lambda r: r["collision_rate_after"]),
    ("changed", "at most", lambda r: r["moved_ids"] / max(r["items"], 1)),
    ("churn", "at most", lambda r: r["churn"][0] if r.get("churn") else None),
    ("neighbours", "at least", lambda r: _lift(r)),
)
ALWAYS = ("collision_after", "changed")  # exact whatever the number of items


def judge(report: Report, gates: Gates = Gates()) -> list[dict[str, Any]]:
    """Every gate with its value, its limit, and whether it passed; `passed` is None where nothing was to be judged."""
    results = []
    for name, side, value_of in _ROWS:
        value, limit = value_of(report), getattr(gates, name)
        if value is None or (report["items"] < gates.min_items and name not in ALWAYS):
            passed = None
        else:
            passed = value >= limit if side == "at least" else value <= limit
        results.append({"gate": name, "value": value, "side": side, "limit": limit, "passed": passed})
    return results


def require(results: Sequence[Mapping[str, Any]]) -> None:
    """TokenizerRefused naming every gate that failed, its value and its limit."""
    failed = [r for r in results if r["passed"] is False]
    if failed:
        said = "; ".join(f"{r['gate']} is {r['value']:.4g}, {r['side']} {r['limit']:g} is asked for" for r in failed)
        raise TokenizerRefused(
            f"tokenizer refused: {said}. The day before stays in place; look at the items of this day, or refit"
            " (models/tokenizer/gates.py says what each gate means)"
        )


def _entropy(report: Report) -> float | None:
    most = report["max_entropy"] + math.log(report["reachable"])
    return min(report["entropy"]) / most if most > 0 else None


def _lift(report: Report) -> float | None:
    lifts = [q["lift"] for q in report.get("neighbours", {}).values() if q["lift"] is not None]
    return max(lifts) if lifts else None
