"""What k8s/base/airflow/values.yaml asks of Airflow is in the orchestrate environment, from which its image is built.

Without these the image starts on nobody's machine: the local Airflow uses SQLite, no single sign-on and no StatsD.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.configuration import conf
from conftest import DAGS

VALUES: dict[str, Any] = yaml.safe_load((DAGS.parent / "k8s/base/airflow/values.yaml").read_text())


def test_the_auth_manager_is_installed() -> None:
    module, _, name = VALUES["config"]["core"]["auth_manager"].rpartition(".")
    from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager

    assert issubclass(getattr(importlib.import_module(module), name), BaseAuthManager)


def test_the_executor_is_installed() -> None:
    from airflow.executors.executor_loader import ExecutorLoader

    module, _, name = ExecutorLoader.executors[VALUES["executor"]].rpartition(".")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "module, why",
    [
        ("psycopg2", "the metadata data base is PostgreSQL"),
        ("asyncpg", "the same, for the triggerer"),
        ("statsd", "metrics.statsd_on"),
        ("airflow.providers.amazon.aws.log.s3_task_handler", "logging.remote_base_log_folder"),
    ],
)
def test_drivers_are_installed(module: str, why: str) -> None:
    assert not VALUES["postgresql"]["enabled"] and VALUES["config"]["metrics"]["statsd_on"] == "True"
    assert importlib.util.find_spec(module) is not None, why


def test_the_image_holds_what_the_operators_submit_and_every_process_finds_them(tmp_path: Path) -> None:
    """Laid out as the container file copies it: the triggerer imports triggers by name, without having parsed a DAG."""
    text = (DAGS.parent / "k8s/images/orchestrate.Containerfile").read_text()
    for source, target in re.findall(r"^COPY (\S+)/ /(opt/airflow/\S+)/$", text, re.MULTILINE):
        shutil.copytree(DAGS.parent / source, tmp_path / target)
    path = re.search(r"PYTHONPATH=/(\S+)", text)
    assert path
    code = (
        "import alerts, operators.wait; from operators.kfp_run import KfpRunTrigger, package\n"
        "names = ['features', 'tokenizer', 'training', 'gate', 'shadow', 'canary', 'promote', 'command']\n"
        "print([n for n in names if not package(n).is_file()], package('imports').with_suffix('.json').is_file())"
    )
    env = {k: v for k, v in os.environ.items() if k != "ONEREC_KFP_PACKAGES"} | {"PYTHONPATH": str(tmp_path / path[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[] True", done.stderr


def test_every_setting_is_one_that_airflow_knows() -> None:
    """A misspelt or moved setting is passed over in silence."""
    known = conf.configuration_description
    executors = {"kubernetes_executor"}  # described by its provider
    for section, settings in VALUES["config"].items():
        options = known[section]["options"] if section in known else {}
        assert section in known or section in executors, section
        assert [name for name in settings if name not in options and section not in executors] == [], section
