"""What `recommend` tells Triton of itself: each series once a batch, and only when it changed."""

from __future__ import annotations

import types

from serving.measures import Measures

CALLS: list[tuple] = []


class Family:
    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> types.SimpleNamespace:
        def call(what: str):
            return lambda value: CALLS.append((what, self.name, tuple(labels.values()), value))

        return types.SimpleNamespace(increment=call("add"), set=call("set"))


def told(measures: Measures) -> list[tuple]:
    CALLS.clear()
    measures.tell()
    return sorted(CALLS)


def test_a_batch_is_told_once_a_series_and_only_what_changed():
    CALLS.clear()
    measures = Measures(types.SimpleNamespace(MetricFamily=Family))
    assert sorted(CALLS) == [
        ("add", "onerec_refused_total", (), 0),
        ("set", "onerec_feature_breaker_open", (), 0),
    ]
    for _ in range(3):
        measures.refused()
    measures.error("a")
    measures.shadow("b", 0.0)
    assert told(measures) == [
        ("add", "onerec_errors_total", ("a",), 1),
        ("add", "onerec_refused_total", (), 3),
        ("add", "onerec_shadow_overlap_total", ("b",), 0.0),  # a new series stands there with zero
        ("add", "onerec_shadow_total", ("b",), 1),
    ]
    measures.shadow("b", 0.0)
    assert told(measures) == [("add", "onerec_shadow_total", ("b",), 1)]
    assert told(measures) == []
