"""Podman for the tests that run containers: the settings it needs here, the base image, builds, runs.

Works without systemd and without CAP_SYS_RESOURCE, as CI machines often are; needs root, and the Debian packages
podman, runc and debootstrap. No registry is asked: the base is made by debootstrap.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.k8s.manifests import REPOSITORY

SETTINGS = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
LIMITS = ("--ulimit=nproc=32768:32768", "--ulimit=nofile=20000:20000")
PACKAGES = "python3.11-venv libpython3.11 libgomp1 ca-certificates"
WHEELS = Path(os.environ.get("PIP_FIND_LINKS", "/nonexistent"))
PIP_CACHE = Path.home() / ".cache" / "pip"  # what `make setup` has fetched is not fetched again


def missing() -> str:
    """What is not here, in words; "" when everything is."""
    lacks = [program for program in ("podman", "debootstrap", "runc") if shutil.which(program) is None]
    if lacks:
        return f"no {', '.join(lacks)} on the path: install the packages of these names"
    return "" if os.geteuid() == 0 else "building a base with debootstrap needs root"


def environment() -> dict[str, str]:
    file = Path(tempfile.gettempdir()) / f"onerec-containers-{os.getuid()}.conf"
    file.write_text(SETTINGS)
    return os.environ | {"CONTAINERS_CONF": str(file)}


def run(*command: str, timeout: float = 1500) -> str:
    """Output of a command; AssertionError with its last words when it fails."""
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, env=environment(), errors="replace"
    )
    assert found.returncode == 0, f"{' '.join(command)}:\n{found.stdout[-2000:]}\n{found.stderr[-3000:]}"
    return found.stdout


def podman(*arguments: str, timeout: float = 1500) -> str:
    return run("podman", *arguments, timeout=timeout)


@contextlib.contextmanager
def built(root: Path, name: str = "localhost/onerec-base:test") -> Iterator[str]:
    """A Debian 12 with Python 3.11 as an image, for the block."""
    run("debootstrap", "--variant=minbase", "bookworm", str(root / "fs"))
    shutil.copy("/etc/resolv.conf", root / "fs" / "etc")
    install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {PACKAGES}"
    run("env", "DEBIAN_FRONTEND=noninteractive", "chroot", str(root / "fs"), "sh", "-c", install)
    run("sh", "-c", f"tar -C {root / 'fs'} -c . | podman import - {name}")
    shutil.rmtree(root / "fs")
    try:
        yield name
    finally:
        subprocess.run(["podman", "rmi", "-f", name], capture_output=True, check=False, env=environment())


def build(name: str, base: str) -> str:
    """The image of a container file, with the CPU build of PyTorch."""
    tag = f"localhost/onerec-{name}:test"
    mounts = [Path("/etc/ssl/certs"), Path("/etc/pip.conf"), WHEELS]
    volumes = [f"-v={path}:{path}:ro" for path in mounts if path.exists()]
    PIP_CACHE.mkdir(parents=True, exist_ok=True)
    volumes.append(f"-v={PIP_CACHE}:/root/.cache/pip:rw")
    more = [f"--env=PIP_FIND_LINKS={WHEELS}"] if WHEELS.exists() else []
    arguments = [f"--build-arg=BASE={base}", "--build-arg=TORCH=torch-cpu", "-t", tag]
    podman("build", "--isolation=chroot", "--network=host", *LIMITS, *volumes, *more, *arguments,
           "-f", f"k8s/images/{name}.Containerfile", ".")  # fmt: skip
    return tag


def size(image: str) -> int:
    return int(podman("image", "inspect", "--format", "{{.Size}}", image))


def by_digest(image: str) -> str:
    """The same image as name@sha256:..."""
    return podman("image", "inspect", "--format", "{{index .RepoDigests 0}}", image).strip()


def run_container(image: str, *command: str) -> str:
    """As a cluster runs it: no root, no capability, nothing to write but /tmp."""
    strict = ("--read-only", "--cap-drop=ALL", "--tmpfs=/tmp", "--security-opt=no-new-privileges")
    return podman("run", "--rm", "--network=host", *strict, image, *command)
