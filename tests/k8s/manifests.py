"""What the tests of `k8s/` share: each overlay, rendered once."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
K8S = REPOSITORY / "k8s"
OVERLAYS = ("dev", "staging", "prod")
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@functools.cache
def kubectl() -> str:
    """The kubectl that `make setup` puts into the environment, else the one of the path."""
    here = Path(sys.executable).with_name("kubectl")
    found = str(here) if here.is_file() else shutil.which("kubectl")
    if found is None and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("no kubectl on the path, and none is locked for this machine: the manifests cannot be rendered")
    assert found, "kubectl is missing: run `make setup`"
    return found


@functools.cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """The objects of an overlay, as `kubectl apply -k` sends them."""
    found = subprocess.run([kubectl(), "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True)
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
