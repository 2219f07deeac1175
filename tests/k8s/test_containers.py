"""The Deployments as real containers, by podman kube play. A training component: test_docker_runner.py.

ONEREC_CONTAINERS=1 builds `ml` and `triton` from a debootstrap base first (about 10 minutes, 6 GB); ONEREC_IMAGES
names images that are there instead, as localhost/onerec-{}:test. What of Kubernetes podman has not (volume claims,
secrets of a cluster, probes over HTTP from outside) is stood in for here; everything else is the rendered manifest.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from releases.channels import promote
from serving.client import RecommendClient
from serving.ports import free_ports
from tests.feature_repo.conftest import DAYS, end_of
from tests.k8s.manifests import of_kind
from tests.k8s.podman import build, built, missing, podman, run_container, size

pytestmark = [
    pytest.mark.skipif(os.environ.get("ONEREC_CONTAINERS") != "1", reason="builds images: set ONEREC_CONTAINERS=1"),
    pytest.mark.timeout(3600),
]
READY_S = 300.0


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Image names by environment."""
    if why := missing():
        pytest.skip(why)
    if given := os.environ.get("ONEREC_IMAGES"):
        yield {name: given.format(name) for name in ("ml", "triton")}
        return
    with built(tmp_path_factory.mktemp("root")) as base:
        yield {name: build(name, base) for name in ("ml", "triton")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A release in production and a filled local feature store, readable by the containers' user."""
    from tests.serving.conftest import build_world

    base = tmp_path_factory.mktemp("world")
    found = build_world(base)
    promote(found.store, found.release.name)
    for path in [base, *base.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    for parent in base.parents[:2]:  # pytest's own folders are the user's alone
        parent.chmod(0o755)
    return found


def test_images_are_small_enough_and_run_as_nobody_without_writing(images) -> None:
    for name, image in images.items():
        print(f"{name}: {size(image) / 1e9:.2f} GB")
        assert size(image) < 4e9, "with the CPU build of PyTorch"
        assert "uid=1000" in run_container(image, "id")
        with pytest.raises(AssertionError, match="Read-only file system"):
            run_container(image, "touch", "/opt/onerec/written")


@contextlib.contextmanager
def played(tmp_path: Path, documents: list[dict[str, Any]]) -> Iterator[str]:
    """The documents, played; yields the name of the pod."""
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    pod = f"{documents[-1]['metadata']['name']}-pod-0"
    try:
        podman("kube", "play", "--network=host", str(file))
        yield pod
    finally:
        with contextlib.suppress(AssertionError):
            podman("kube", "down", str(file))


def deployment(name: str, image: str, mounts: dict[str, Path], arguments: dict[str, str], env: dict[str, str]) -> dict:
    """The Deployment of the dev overlay, with the folders of this machine in place of volumes and `env` of secrets."""
    (found,) = [d for d in of_kind("dev", "Deployment") if d["metadata"]["name"] == name]
    found = copy.deepcopy(found)
    found["spec"]["replicas"] = 1
    pod = found["spec"]["template"]["spec"]
    for part in ("topologySpreadConstraints", "tolerations", "serviceAccountName"):
        pod.pop(part, None)
    (container,) = pod["containers"]
    container["image"] = image
    container["imagePullPolicy"] = "Never"
    for part in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "envFrom", "ports"):
        container.pop(part, None)  # asked for from outside, below
    container["resources"].pop("requests", None)
    container["env"] = [{"name": k, "value": v} for k, v in env.items()]
    for key in ("command", "args"):
        words = container.get(key, [])
        for i, word in enumerate(words):
            option = word.partition("=")[0]
            if option in arguments:
                words[i : i + 1] = [f"{option}={arguments[option]}"] if "=" in word else [word]
                if "=" not in word:
                    words[i + 1] = arguments[option]
    kept = {m["name"] for m in container["volumeMounts"]}
    # Kubernetes makes an emptyDir writable for all; podman's at /dev/shm is root's, but a pod has one of its own there.
    pod["volumes"] = [v for v in pod["volumes"] if v["name"] in kept - {"shm"} and "emptyDir" in v]
    container["volumeMounts"] = [
        m for m in container["volumeMounts"] if m["name"] in {v["name"] for v in pod["volumes"]}
    ]
    for i, (path, folder) in enumerate(mounts.items()):
        pod["volumes"].append({"name": f"host{i}", "hostPath": {"path": str(folder), "type": "Directory"}})
        container["volumeMounts"].append({"name": f"host{i}", "mountPath": path, "readOnly": path == "/models"})
    return found


def wait_ready(url: str, pod: str) -> float:
    started = time.monotonic()
    while time.monotonic() - started < READY_S:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return time.monotonic() - started
        time.sleep(0.5)
    raise AssertionError(f"{url} was not ready:\n{podman('pod', 'logs', '--tail', '60', pod)}")


def test_the_triton_deployment_answers_over_tls(images, world, tmp_path) -> None:
    http, grpc, metrics = free_ports(3)
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key, certificate = tmp_path / "tls" / "tls.key", tmp_path / "tls" / "tls.crt"
    key.parent.mkdir()
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*new, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    for path in (tmp_path, key.parent, key, certificate):
        path.chmod(0o755 if path.is_dir() else 0o644)
    ports = {"--http-port": http, "--grpc-port": grpc, "--metrics-port": metrics}
    arguments = {name: str(port) for name, port in ports.items()}
    arguments |= {"--features": str(world.features), "--feature-store": str(world.feature_store)}
    base = world.features.parent
    mounts = {
        "/models": world.store.root,
        "/run/secrets/tls": key.parent,
        str(base): base,
    }  # Feast's registry knows the tables by their place
    env = {"HOME": "/tmp", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    with played(tmp_path, [deployment("triton", images["triton"], mounts, arguments, env)]) as pod:
        ready = wait_ready(f"http://127.0.0.1:{http}/v2/health/ready", pod)
        with RecommendClient(f"localhost:{grpc}", tls_root=certificate) as client:
            answer = client.recommend(1, 8, now_s=int(end_of(DAYS[-1]).timestamp()) + 1)
            deadline = time.monotonic() + 60  # a busy machine misses the time limit of the first reads
            while answer.degraded and time.monotonic() < deadline:
                answer = client.recommend(1, 8, now_s=int(end_of(DAYS[-1]).timestamp()) + 1)
        assert answer.release_id == world.release.name and len(answer.item_ids) == 8 and not answer.degraded
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5) as page:
            assert (
                f'onerec_release_info{{channel="production",release="{answer.release_id}"}} 1' in page.read().decode()
            )
        print(f"triton: ready after {ready:.0f} s")


def test_the_feast_deployment_serves_features_and_no_writes(images, world, tmp_path) -> None:
    (port,) = free_ports(1)
    mounts = {"/world": world.features.parent}
    arguments = {"--port": str(port), "--feature-store": "/world/feature_store"}
    with played(tmp_path, [deployment("feast", images["ml"], mounts, arguments, {"HOME": "/tmp"})]) as pod:
        ready = wait_ready(f"http://127.0.0.1:{port}/health", pod)
        body = json.dumps({"feature_service": "onerec_v1", "entities": {"user_id": [1]}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/get-online-features", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as found:
            assert json.loads(found.read())["results"]
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/push", b"{}"), timeout=5)
        print(f"feast: ready after {ready:.0f} s")
