"""Runbooks of the cluster: who reads them, what one sees, and commands that name things that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from cli.main import parser
from tests.k8s.manifests import K8S, REPOSITORY, named, rendered

RUNBOOKS = REPOSITORY / "docs" / "runbooks"
NAMES = (
    *("day_late", "expired_credentials", "feature_store_down", "feature_store_full", "gpu_out_of_memory"),
    *("scheduler_down", "serving_degraded", "serving_down", "training_waits", "volume_full"),
)
OURS = sorted(RUNBOOKS / f"{name}.md" for name in NAMES)
KINDS = {"pvc": "PersistentVolumeClaim", "hpa": "HorizontalPodAutoscaler"}
CHART = {"deployment/airflow-scheduler", "deployment/airflow-dag-processor"}  # made by Airflow's chart
OTHERS = {"pods", "events", "nodes", "workloads", "localqueues,workloads", "trainjobs", "trainjob"}


def commands(runbook: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", runbook.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


@pytest.mark.parametrize("runbook", OURS, ids=lambda f: f.stem)
def test_runbooks_have_their_parts(runbook: Path) -> None:
    text = runbook.read_text()
    for part in ("**Who**: the ", "**What you see**: ", "## Look", "## Do", "**It is over when** "):
        assert part in text, f"{runbook.name} has no {part!r}"
    alerts = yaml.safe_load((K8S / "base/monitoring/rules.yaml").read_text())["spec"]["groups"]
    mine = {
        r["alert"]
        for g in alerts
        for r in g["rules"]
        if "alert" in r and r["annotations"]["runbook_url"].endswith(f"/{runbook.name}")
    }
    assert mine and all(alert in text for alert in mine), f"{runbook.name} does not name {mine}"
    assert all((RUNBOOKS / other).is_file() for other in re.findall(r"\b([a-z_]+\.md)\b", text))


@pytest.mark.parametrize("runbook", OURS, ids=lambda f: f.stem)
def test_commands_name_what_exists(runbook: Path) -> None:
    here = {named(thing) for thing in rendered("prod")}
    assert commands(runbook)
    for line in commands(runbook):
        words = shlex.split(line)
        if words[0] == "onerec":
            filled = [{"START": "2022-05-01T00:00+00:00", "END": "2022-05-06T00:00+00:00"}.get(w, w) for w in words[1:]]
            parser().parse_args(filled)  # SystemExit when there is no such command or option
        elif words[0] == "kubectl":
            check_kubectl(words[1:], here, line)
        else:
            assert words[0] == "helm", line


def check_kubectl(words: list[str], here: set[str], line: str) -> None:
    namespace = "-"
    if words[0] == "-n":
        namespace, words = words[1], words[2:]
        assert f"Namespace -/{namespace}" in here, line
    verb, *rest = words
    assert verb in {"get", "describe", "logs", "delete", "rollout", "patch", "annotate", "diff", "apply"}, line
    if verb in ("diff", "apply"):
        assert (REPOSITORY / rest[rest.index("-k") + 1]).is_dir(), line
        return
    with_value = {"-l", "-o", "-c", "-p", "--type"}
    rest = [w for before, w in zip(["", *rest], rest) if not w.startswith("-") and before not in with_value]
    rest = rest[1:] if verb == "rollout" else rest
    things = [w for w in rest if "/" in w] or ["/".join(rest[:2])]
    for thing in things:
        kind, _, name = thing.partition("/")
        if thing in CHART or kind in OTHERS or thing in ("pod/redis-0", "pvc/data-redis-0"):
            continue
        kind = KINDS.get(kind, kind).lower().removesuffix("s") if kind not in KINDS else KINDS[kind].lower()
        wanted = [h for h in here if h.lower().startswith(f"{kind} {namespace}/")]
        assert wanted, f"{line}: nothing of this kind in {namespace}"
        assert not name or f"{kind} {namespace}/{name}" in {h.lower() for h in wanted}, line


def test_the_check_sees_a_wrong_command() -> None:
    here = {named(thing) for thing in rendered("prod")}
    for line in ("kubectl -n onerec-serving logs deployment/tritn", "kubectl -n nowhere get pods"):
        with pytest.raises(AssertionError):
            check_kubectl(shlex.split(line)[1:], here, line)
    with pytest.raises(SystemExit):
        parser().parse_args(["release", "rolback"])
