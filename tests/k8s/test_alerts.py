"""Alerts and dashboards: expressions parse, metrics are ones that somebody exports, every alert names a runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from tests.k8s.manifests import K8S, REPOSITORY

# Who exports a metric, by how its name begins. What is ours must stand in serving/ (below).
EXPORTERS = {
    "nv_": "Triton",
    "onerec_": "serving/, as custom metrics of Triton",
    "redis_": "redis_exporter",
    "airflow_": "the Airflow chart's StatsD exporter",
    "kueue_": "Kueue",
    "kube_": "kube-state-metrics",
    "kubelet_": "the kubelet",
    "container_": "the kubelet",
    "externalsecret_": "External Secrets",
}
TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_queue_duration_us",
    "nv_inference_request_duration_us",
    "nv_inference_pending_request_count",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_utilization",
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((K8S / "base/monitoring/rules.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> Iterator[tuple[str, str]]:
    for file in sorted((K8S / "base/monitoring/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"]


EXPRESSIONS = [(r.get("alert") or r["record"], r["expr"]) for r in rules()] + list(dashboards())


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """The selectors below a node of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


@pytest.mark.parametrize("where, expression", EXPRESSIONS, ids=lambda v: v[:40])
def test_expressions_parse_and_know_their_metrics(where: str, expression: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    found = {selector.name for selector in selectors(promql_parser.parse(expression))}
    assert found, expression
    for name in found - recorded:
        assert name.startswith(tuple(EXPORTERS)), f"{where}: who exports {name}?"
        assert not name.startswith("nv_") or name in TRITON, f"{where}: Triton has no {name}"


def test_our_own_metrics_are_exported_by_serving() -> None:
    code = "".join(file.read_text() for file in (REPOSITORY / "serving").rglob("*.py"))
    if "MetricFamily" not in code:
        pytest.skip("serving/ exports no metrics of its own yet")
    used = {s.name for _, e in EXPRESSIONS for s in selectors(promql_parser.parse(e)) if s.name.startswith("onerec_")}
    assert [name for name in sorted(used) if name not in code] == []


def test_a_wrong_expression_is_seen() -> None:
    with pytest.raises(ValueError):
        promql_parser.parse("sum by (rate(x[5m])")
    parsed = promql_parser.parse('sum(rate(made_up_total{a="b"}[5m])) / (nv_a + max(other))')
    assert {s.name for s in selectors(parsed)} == {"made_up_total", "nv_a", "other"}


@pytest.mark.parametrize("rule", [r for r in rules() if "alert" in r], ids=lambda r: r["alert"])
def test_alerts_say_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Onerec[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in ("page", "ticket")
    runbook = REPOSITORY / rule["annotations"]["runbook_url"]
    assert runbook.is_file(), f"{rule['alert']} names {runbook.name}, which nobody wrote"
    assert rule["annotations"]["summary"].endswith(".")


def test_runbooks_and_alerts_name_each_other() -> None:
    """A page's list of alerts is that of the alerts that lead to it."""
    alerts = {r["alert"]: r["annotations"]["runbook_url"] for r in rules() if "alert" in r}
    for page in sorted((REPOSITORY / "docs/runbooks").glob("*.md")):
        named = set(re.findall(r"Onerec[A-Z]\w+", page.read_text()))
        assert named == {name for name, url in alerts.items() if url.endswith(f"/{page.name}")}, page.name


def test_alerts_have_different_names() -> None:
    names = [r["alert"] for r in rules() if "alert" in r]
    assert len(names) == len(set(names)) >= 15


def test_dashboards_are_whole() -> None:
    for file in (K8S / "base/monitoring/dashboards").glob("*.json"):
        board = json.loads(file.read_text())
        assert board["uid"] and board["title"]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids)) >= 8
        spots = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
        assert len(spots) == len(ids), f"{file.name}: panels lie on each other"
