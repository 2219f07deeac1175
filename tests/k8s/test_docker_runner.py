"""A training component in a container of its own, run by KFP's Docker runner over podman's socket, as nobody.

Where podman, runc and debootstrap are, the container is a bare Debian with Python, and the environment and this
repository are mounted into it (a minute). With ONEREC_CONTAINERS=1 it is the `ml` image, built from its locks, with
nothing mounted but the workspace; ONEREC_IMAGES names images that are there (test_containers.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.store import apply
from feature_repo.training_set import build as build_training_set
from kfp_components.step import Outcome, run_step
from kfp_components.workspace import Workspace
from tests.feature_repo.conftest import DAYS, write_days
from tests.k8s.manifests import REPOSITORY
from tests.k8s.podman import build, built, by_digest, environment, missing
from tests.serving.conftest import write_items

pytestmark = pytest.mark.timeout(3600)
DAY = DAYS[-1].isoformat()
STRICT = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "tmpfs": {"/tmp": ""}}
RUN = """
    import json, os, sys
    from kfp import dsl, local
    root, folder, day, runner = sys.argv[1:]
    local.init(local.DockerRunner(**json.loads(runner)), pipeline_root=folder, raise_on_error=True)
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
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[tuple[str, dict[str, Any]]]:
    """The image by its digest, and how a container of it is run."""
    if why := missing():
        pytest.skip(why)
    if given := os.environ.get("ONEREC_IMAGES"):
        yield by_digest(given.format("ml")), STRICT
        return
    with built(tmp_path_factory.mktemp("root"), name="localhost/onerec-runner:test") as base:
        if os.environ.get("ONEREC_CONTAINERS") == "1":
            yield by_digest(build("ml", base)), STRICT
            return
        packages = sysconfig.get_paths()["purelib"]
        env = {"PYTHONPATH": f"{REPOSITORY}:{packages}", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
        mounts = [mount(str(REPOSITORY), read_only=True), mount(packages, read_only=True)]
        yield by_digest(base), STRICT | {"user": "1000:1000", "environment": env, "mounts": mounts}


def mount(path: str, *, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": path, "Target": path, "ReadOnly": read_only}


@contextlib.contextmanager
def podman_socket(path: Path) -> Iterator[str]:
    """Podman's API, which speaks Docker's too."""
    command = ["podman", "system", "service", "--time=0", f"unix://{path}"]
    service = subprocess.Popen(command, env=environment())
    try:
        while not path.exists():
            assert service.poll() is None, "podman's service ended at once"
            time.sleep(0.1)
        yield f"unix://{path}"
    finally:
        service.terminate()
        service.wait(20)


def test_a_training_component_runs_in_its_container_by_kfps_docker_runner(runner, tmp_path) -> None:
    """Podman tells KFP of every container that it ended well (it is removed before it is asked), so what counts is the
    outcome: whole, in the workspace, with the digest that KFP got, and made by the container's user."""
    image, options = runner
    root, folder = prepared_day(tmp_path / "var"), tmp_path / "kfp"
    folder.mkdir()
    folder.chmod(0o777)  # KFP mounts it; whoever the container runs as writes outputs into it
    options = options | {
        "network_mode": "none",
        "mounts": [*options.get("mounts", []), mount(str(root), read_only=False)],
    }
    with podman_socket(tmp_path / "podman.sock") as url:
        env = os.environ | {"DOCKER_HOST": url, "ONEREC_IMAGE": image}
        command = [sys.executable, "-c", textwrap.dedent(RUN), str(root), str(folder), DAY, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=900)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    left = root / "s" / "days" / DAY / "tokenize"
    assert (left / "_outcome.json").is_file(), said
    outcome = Outcome.read(left)
    assert outcome.whole() and "sid_table.parquet" in outcome.files and f"Output: '{outcome.digest}'" in done.stdout
    assert (left / "_outcome.json").stat().st_uid == 1000


def prepared_day(root: Path) -> Path:
    """A workspace with the tables and outcomes that `tokenize` starts from, which anybody may write into."""
    w = Workspace(root=str(root), source="s")
    write_days(w.features, np.random.default_rng(5))
    apply(features=w.features, feature_store=w.feature_store)
    build_training_set(features=w.features, feature_store=w.feature_store, day=DAYS[-1])
    items = w.partition("items", DAY)
    items.parent.mkdir(parents=True)
    write_items(items)
    outcomes = {}
    for name, step in (("tables", "ingest"), ("features", "pathways")):

        def body(out: Path, progress) -> dict:
            (out / "made.txt").write_text(DAY)
            return {}

        made = run_step(
            workspace=w, day=DAY, step=step, inputs=[], rooms=("datasets/errors.py",), settings={}, body=body
        )
        outcomes[name] = (str(made.path), made.digest)
    (root / "outcomes.json").write_text(json.dumps(outcomes))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    return root
