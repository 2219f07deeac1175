"""What k8s/base/airflow/values.yaml asks of Airflow is in the orchestrate environment, from which its image is built.

Without these the image starts on nobody's machine: the local Airflow uses SQLite, no single sign-on and no StatsD.
"""

from __future__ import annotations

import asyncio
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
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

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
        ("psycopg", "the same, for what Airflow does asynchronously"),
        ("statsd", "metrics.statsd_on"),
        ("airflow.providers.amazon.aws.log.s3_task_handler", "logging.remote_base_log_folder"),
    ],
)
def test_drivers_are_installed(module: str, why: str) -> None:
    assert not VALUES["postgresql"]["enabled"] and VALUES["config"]["metrics"]["statsd_on"] == "True"
    assert importlib.util.find_spec(module) is not None, why


def test_both_addresses_of_the_data_base_are_ones_that_their_drivers_take() -> None:
    """Nobody listens there: a driver that gets as far as being refused has understood the address."""
    secrets = yaml.safe_load_all((DAGS.parent / "k8s/base/airflow/secrets.yaml").read_text())
    (found,) = [s["spec"]["target"]["template"]["data"] for s in secrets if s["metadata"]["name"] == "airflow-metadata"]
    assert {s["envName"]: s["secretKey"] for s in VALUES["secret"]} == {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "connection-async"
    }
    fill = {"{{ .username }}": "u", "{{ .password }}": "p", "{{ .host }}": "127.0.0.1:1"}
    addresses = {name: re.sub(r"{{ \.\w+ }}", lambda m: fill[m[0]], text) for name, text in found.items()}
    with pytest.raises(OperationalError, match="refused"):
        create_engine(addresses["connection"]).connect()

    async def connect() -> None:
        async with create_async_engine(addresses["connection-async"]).connect():
            pass

    with pytest.raises(OperationalError, match="refused"):
        asyncio.run(connect())


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
