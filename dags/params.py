"""The params that every DAG of a day takes: where its logs and its workspace are."""

from __future__ import annotations

import os

from airflow.sdk import Param


def day_params() -> dict[str, Param]:
    """Typed and described, so that Airflow's page makes a form of them."""
    return {
        "data": Param(os.environ.get("ONEREC_DATA", ""), type="string", description="folder with the logs"),
        "root": Param(os.environ.get("ONEREC_ROOT", "var"), type="string", description="workspace folder"),
        "source": Param("simulated", type="string", description="name of the source in the workspace"),
        "seed": Param(0, type="integer", minimum=0, description="seed of everything random"),
        "fresh_from": Param("", type="string", description="a step: from it on nothing is reused"),
    }
