"""Container files: locked and hashed packages, a base that the build names, no root, the code that a pod starts.

ONEREC_CONTAINERS=1 also builds `orchestrate` from a debootstrap base with podman and runs it as the chart does (slow).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.manifests import K8S, OVERLAYS, REPOSITORY, pods

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


def run(*command: str, timeout: int = 900, **environment: str) -> str:
    env = os.environ | environment
    found = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, env=env)
    assert found.returncode == 0, f"{' '.join(command)}:\n{found.stdout[-2000:]}\n{found.stderr[-3000:]}"
    return found.stdout


@pytest.mark.skipif(os.environ.get("ONEREC_CONTAINERS") != "1", reason="builds images: set ONEREC_CONTAINERS=1")
@pytest.mark.timeout(1800)
def test_orchestrate_is_built_and_runs_without_root_on_a_read_only_file_system(tmp_path: Path) -> None:
    for program in ("podman", "debootstrap", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on the path: install the package {program}")
    root, settings = tmp_path / "root", tmp_path / "containers.conf"
    settings.write_text(  # for a machine without systemd and without CAP_SYS_RESOURCE, as CI's often is
        '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\nnetns = "host"\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
    )
    run("debootstrap", "--variant=minbase", "bookworm", str(root))
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3.11-venv ca-certificates"
    run(
        "sh",
        "-c",
        f"cp /etc/resolv.conf {root}/etc/ && chroot {root} sh -c '{install}'",
        DEBIAN_FRONTEND="noninteractive",
    )
    run("sh", "-c", f"tar -C {root} -c . | podman import - localhost/onerec-base:test")
    mounts = [f"-v={path}:{path}:ro" for path in ("/etc/ssl/certs", "/etc/pip.conf") if Path(path).exists()]
    limits = ["--ulimit=nproc=32768:32768", "--ulimit=nofile=20000:20000"]
    build = ["podman", "build", "--isolation=chroot", "--network=host", *limits, *mounts]
    build += ["--build-arg=BASE=localhost/onerec-base:test", "-t", "localhost/onerec-orchestrate:test"]
    start = ["podman", "run", "--rm", "--network=host", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp"]
    start += ["--security-opt=no-new-privileges", "localhost/onerec-orchestrate:test"]
    try:
        run(*build, "-f", "k8s/images/orchestrate.Containerfile", ".", CONTAINERS_CONF=str(settings))
        assert "uid=50000" in run(*start, "id", CONTAINERS_CONF=str(settings))
        version = ["sh", "-c", "AIRFLOW_HOME=/tmp/airflow airflow version"]
        assert run(*start, *version, CONTAINERS_CONF=str(settings)).strip().endswith("3.3.2")
        with pytest.raises(AssertionError, match="Read-only file system"):
            run(*start, "touch", "/opt/airflow/written", CONTAINERS_CONF=str(settings))
    finally:
        for image in ("localhost/onerec-orchestrate:test", "localhost/onerec-base:test"):
            subprocess.run(["podman", "rmi", "-f", image], capture_output=True, check=False)
