"""The tags a DAG may carry; tests/dags holds every DAG to them."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """`impact/*`: who notices a failure. `rerun/*`: what running it again means (exactly one of each)."""

    TIER_1 = "impact/tier_1"  # recommendations go stale
    TIER_2 = "impact/tier_2"  # people work with old numbers
    TIER_3 = "impact/tier_3"  # nobody notices today
    RERUN_INTERVAL = "rerun/interval"  # clear or backfill a day: the same inputs give the same day again
    RERUN_NOW = "rerun/now"  # trigger it anew: it works on the present
