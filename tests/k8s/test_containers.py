"""The Deployments and one training component as real containers: podman kube play, KFP's Docker runner.

ONEREC_CONTAINERS=1 builds `ml` and `triton` from a debootstrap base first (about 10 minutes, 6 GB); ONEREC_IMAGES
names images that are there instead, as localhost/onerec-{}:test. What of Kubernetes podman has not (volume claims,
secrets of a cluster, probes over HTTP from outside) is stood in for here; everything else is the rendered manifest.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kfp_components.step import run_step
from kfp_components.workspace import Workspace
from releases.channels import promote
from serving.client import RecommendClient
from serving.ports import free_ports
from tests.feature_repo.conftest import DAYS, end_of
from tests.k8s.manifests import REPOSITORY, of_kind
from tests.k8s.podman import build, built, by_digest, environment, missing, podman, run_container, size

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


@pytest.mark.xfail(reason="KFP ends well, but the outcome is not where the mounted workspace lies: not understood yet")
def test_a_training_component_runs_in_its_container_by_kfps_docker_runner(images, world, tmp_path) -> None:
    """`tokenize` on a day of the world: KFP's own Docker runner, over podman's socket."""
    pytest.importorskip("docker", reason="KFP's Docker runner needs the Python package docker")
    socket = tmp_path / "podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{socket}"], env=environment())
    code = textwrap.dedent("""
        import json, os, sys
        from kfp import dsl, local
        root, folder, day = sys.argv[1:]
        os.umask(0)  # the container's user writes into what KFP makes here
        mount = {"Type": "bind", "Source": root, "Target": root, "ReadOnly": False}
        local.init(local.DockerRunner(mounts=[mount], network_mode="host"), pipeline_root=folder, raise_on_error=True)
        from kfp_components.tokenize.component import tokenize
        outcomes = json.load(open(f"{root}/outcomes.json"))
        @dsl.pipeline(name="one")
        def one():
            given = {}
            for name, (uri, digest) in outcomes.items():
                made = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, reimport=True)
                given |= {name: made.output, f"{name}_digest": digest}
            tokenize(day=day, root=root, source="s", seed=1, fresh_from="", refit=False, **given)
        one()
    """)
    root = prepared_day(world, tmp_path / "var")
    env = os.environ | {"DOCKER_HOST": f"unix://{socket}", "ONEREC_IMAGE": by_digest(images["ml"])}
    try:
        while not socket.exists():
            assert service.poll() is None
            time.sleep(0.1)
        command = [sys.executable, "-c", code, str(root), str(tmp_path / "kfp"), DAYS[-1].isoformat()]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=900)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    finally:
        service.terminate()
        service.wait(20)
    left = root / "s" / "days" / DAYS[-1].isoformat() / "tokenize"
    assert (left / "_outcome.json").is_file() and (left / "sid_table.parquet").is_file()
    assert (left / "_outcome.json").stat().st_uid == 1000  # the container's user made it


def prepared_day(world, root: Path) -> Path:
    """A workspace with the outcomes that `tokenize` starts from, over the world's tables."""
    w, day = Workspace(root=str(root), source="s"), DAYS[-1].isoformat()
    w.base.mkdir(parents=True)
    shutil.copytree(world.features, w.features)
    folder = w.partition("items", day).parent
    folder.mkdir(parents=True)
    shutil.copy(world.items, folder / "part-0.parquet")
    outcomes = {}
    for name, step in (("tables", "ingest"), ("features", "pathways")):

        def body(out: Path, progress) -> dict:
            (out / "made.txt").write_text(day)
            return {}

        made = run_step(
            workspace=w, day=day, step=step, inputs=[], rooms=("datasets/errors.py",), settings={}, body=body
        )
        outcomes[name] = (str(made.path), made.digest)
    (root / "outcomes.json").write_text(json.dumps(outcomes))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    return root
