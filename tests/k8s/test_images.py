"""Container files: locked and hashed packages, a base that the build names, no root, the code that a pod starts.

ONEREC_CONTAINERS=1 also builds `orchestrate` from a debootstrap base with podman and runs it as the chart does (slow).
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from tests.k8s.manifests import K8S, OVERLAYS, REPOSITORY, pods
from tests.k8s.podman import build, built, missing, run, run_container

FILES = sorted((K8S / "images").glob("*.Containerfile"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_container_files_keep_the_rules(file: Path) -> None:
    text = file.read_text()
    lines = text.splitlines()
    assert "ARG BASE" in lines, "the base is a build argument without a default"
    assert {line for line in lines if line.startswith("FROM")} == {"FROM ${BASE} AS build", "FROM ${BASE}"}
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users and all(int(user.split(":")[0]) >= 1000 for user in users)
    installs = re.findall(r"pip install (.*?)(?: \\|$)", text, re.MULTILINE)
    assert installs and all("--require-hashes" in i and "--no-deps" in i for i in installs)
    assert not re.search(r"curl|wget|ADD |apt-get|sudo|latest", text)
    for lock in re.findall(r"-r /locks/(\w[\w-]*\.txt)", text):
        assert (REPOSITORY / "locks" / lock).is_file()
    for room in re.findall(r"^COPY (\w+)/ /opt", text, re.MULTILINE):
        assert (REPOSITORY / room).is_dir()


def test_every_image_of_the_manifests_has_a_container_file_or_is_public() -> None:
    ours = {file.stem for file in FILES}
    for overlay in OVERLAYS:
        for _, pod in pods(overlay):
            for container in pod["containers"]:
                if image := container.get("image"):
                    name = re.split(r"[:@]", image.rpartition("/")[2])[0]
                    assert name in ours | {"redis", "redis-exporter", "redis_exporter"}, image


def test_modules_that_pods_start_are_copied_into_their_image() -> None:
    for name, pod in pods("prod"):
        for container in pod["containers"]:
            command = container.get("command", [])
            if "-m" in command:
                module = command[command.index("-m") + 1]
                image = re.split(r"[:@]", container["image"].rpartition("/")[2])[0]
                room = module.split(".")[0]
                assert f"COPY {room}/ " in (K8S / f"images/{image}.Containerfile").read_text(), name


def test_options_that_pods_give_are_known() -> None:
    """The help of each module that a pod starts names every option of its manifest."""
    for name, pod in pods("prod"):
        for container in pod["containers"]:
            command = [*container.get("command", []), *container.get("args", [])]
            if "-m" not in command:
                continue
            module = command[command.index("-m") + 1]
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{name} starts {module}, which this checkout does not have")
            known = run(sys.executable, "-m", module, "--help")
            options = [word.partition("=")[0] for word in command if word.startswith("--")]
            assert options and [option for option in options if option not in known] == [], name


@pytest.mark.skipif(os.environ.get("ONEREC_CONTAINERS") != "1", reason="builds images: set ONEREC_CONTAINERS=1")
@pytest.mark.timeout(3600)
def test_orchestrate_is_built_and_runs_without_root_on_a_read_only_file_system(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    with built(tmp_path) as base:
        image = build("orchestrate", base)
        assert "uid=50000" in run_container(image, "id")
        version = run_container(image, "sh", "-c", "AIRFLOW_HOME=/tmp/airflow airflow version")
        assert version.strip().endswith("3.3.2")
        found = "from operators.kfp_run import package; print(package('training').is_file())"
        assert run_container(image, "sh", "-c", f'AIRFLOW_HOME=/tmp/airflow python -c "{found}"').strip() == "True"
        with pytest.raises(AssertionError, match="Read-only file system"):
            run_container(image, "touch", "/opt/airflow/written")
