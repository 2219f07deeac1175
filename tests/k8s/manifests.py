"""What the tests of `k8s/` share: each overlay, rendered once."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
K8S = REPOSITORY / "k8s"
OVERLAYS = ("dev", "staging", "prod")
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@functools.cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """The objects of an overlay, as `kubectl apply -k` sends them."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed: the manifests cannot be rendered")
    found = subprocess.run([kubectl, "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return tuple(yaml.safe_load_all(found.stdout))


def named(thing: dict[str, Any]) -> str:
    metadata = thing["metadata"]
    return f"{thing['kind']} {metadata.get('namespace', '-')}/{metadata['name']}"


def of_kind(overlay: str, *kinds: str) -> list[dict[str, Any]]:
    return [thing for thing in rendered(overlay) if thing["kind"] in kinds]


def pods(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, pod spec) of every workload, and of the runtime that TrainJobs take theirs from."""
    found = [(named(w), w["spec"]["template"]["spec"]) for w in of_kind(overlay, *WORKLOADS)]
    for runtime in of_kind(overlay, "TrainingRuntime"):
        for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
            found.append((named(runtime), job["template"]["spec"]["template"]["spec"]))
    return found
