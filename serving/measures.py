"""The metrics that `recommend` adds to Triton's own. Made inside the backend, which hands in its module `pb_utils`.

Names and meanings: COUNTERS and GAUGES. No label ever holds a user or an item.

A change of a metric crosses to Triton's process and waits for it, on the road of the request. So a batch only notes
what it counts, and `tell` sends each series once, if it changed.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from serving.answering import Given
from serving.features import FULL
from serving.route import Ask
from serving.routing import View

COUNTERS = {
    "onerec_answers_total": "answers by what was known of the user",
    "onerec_short_answers_total": "answers with fewer items than asked for",
    "onerec_empty_answers_total": "answers without an item",
    "onerec_illegal_items_total": "items of the model whose code is not theirs",
    "onerec_errors_total": "requests that ended in an internal error",
    "onerec_refused_total": "requests refused as wrong",
    "onerec_shadow_total": "requests that were also run on the candidate",
    "onerec_shadow_overlap_total": "sum of the overlaps at K of those with production's answers",
}
GAUGES = {
    "onerec_feature_age_seconds": "age of the features of the newest full answer",
    "onerec_feature_breaker_open": "1 while the feature store is left alone after a failure",
    "onerec_release_info": "1 for the release that serves a channel, 0 for one that did",
    "onerec_canary_aborted": "1 for a candidate that was taken out automatically",
}


class Measures:
    """Counters and gauges by name and labels; a series is made when it is first told. Safe for several threads."""

    def __init__(self, pb_utils: Any) -> None:
        kinds = dict.fromkeys(COUNTERS, pb_utils.MetricFamily.COUNTER) | dict.fromkeys(
            GAUGES, pb_utils.MetricFamily.GAUGE
        )
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=(COUNTERS | GAUGES)[name], kind=kind)
            for name, kind in kinds.items()
        }
        self._series: dict[tuple, Any] = {}
        self._counted: defaultdict[tuple, float] = defaultdict(float)
        self._values: dict[tuple, float] = {}
        self._told: dict[tuple, float] = {}
        self._lock = threading.Lock()
        self._channels: dict[str, str] = {}
        self._add("onerec_refused_total", 0)
        self._set("onerec_feature_breaker_open", 0)
        self.tell()

    def answered(self, ask: Ask, given: Given) -> None:
        release, items = given.route.release_id, len(given.picked.items)
        self._add("onerec_answers_total", 1, release=release, kind=given.kind)
        self._add("onerec_short_answers_total", int(items < ask.k), release=release)
        self._add("onerec_empty_answers_total", int(not items), release=release)
        self._add("onerec_illegal_items_total", given.picked.illegal, release=release)
        self._add("onerec_errors_total", 0, release=release)
        if given.kind == FULL:
            self._set("onerec_feature_age_seconds", max(time.time() - given.features.feature_time_s, 0))

    def refused(self) -> None:
        self._add("onerec_refused_total", 1)

    def error(self, release: str) -> None:
        self._add("onerec_errors_total", 1, release=release)

    def shadow(self, release: str, overlap: float) -> None:
        self._add("onerec_shadow_total", 1, release=release)
        self._add("onerec_shadow_overlap_total", overlap, release=release)

    def state(self, view: View, breaker_open: bool, taken_out: Iterable[str]) -> None:
        """What serves now, and which candidates were taken out."""
        for release in taken_out:
            self._set("onerec_canary_aborted", 1, release=release)
        self._set("onerec_feature_breaker_open", int(breaker_open))
        candidate = view.candidate.release_id if view.candidate else ""
        for channel, release in (("production", view.production.release_id), ("candidate", candidate)):
            before = self._channels.get(channel, "")
            if before == release:
                continue
            if before:
                self._set("onerec_release_info", 0, release=before, channel=channel)
            if release:
                self._set("onerec_release_info", 1, release=release, channel=channel)
                self._set("onerec_canary_aborted", 0, release=release)
            self._channels[channel] = release

    def tell(self) -> None:
        """Send what changed since the last time."""
        with self._lock:
            counted, self._counted = self._counted, defaultdict(float)
            values, self._values = self._values, {}
            for key, value in counted.items():
                if value or key not in self._series:
                    self._of(key).increment(value)
            for key, value in values.items():
                if self._told.get(key) != value:
                    self._of(key).set(value)
                    self._told[key] = value

    def _add(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._counted[name, *sorted(labels.items())] += value

    def _set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name, *sorted(labels.items())] = value

    def _of(self, key: tuple) -> Any:
        if key not in self._series:
            self._series[key] = self._families[key[0]].Metric(labels=dict(key[1:]))
        return self._series[key]
