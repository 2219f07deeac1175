"""The params that every DAG of a day takes: where its logs and its workspace are."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Param


def day_params() -> dict[str, Param]:
    """Typed and described, so that Airflow's page makes a form of them."""
    return {
        **place_params(),
        "data": Param(os.environ.get("ONEREC_DATA", ""), type="string", description="folder with the logs"),
        "seed": Param(0, type="integer", minimum=0, description="seed of everything random"),
        "fresh_from": Param("", type="string", description="a step: from it on nothing is reused"),
        "wait_hours": Param(20, type="number", minimum=0, description="how long a late upstream is waited for; 0: not"),
    }


def traffic_params() -> dict[str, Param]:
    """How a candidate meets traffic before it is promoted."""
    return {
        "servers": Param(
            os.environ.get("ONEREC_SERVERS", ""),
            type="string",
            description="addresses of the servers' metrics, commas between; empty: nobody serves, no rollout",
        ),
        "shadow_percents": Param(
            "10", type="string", description="shares of the requests that are compared, as in 1,10"
        ),
        "canary_percents": Param(
            "1,10,50", type="string", description="shares of the users that the candidate answers"
        ),
        "rollout_answers": Param(500, type="integer", minimum=1, description="requests that each share must have seen"),
        "rollout_hours": Param(2, type="number", minimum=0, description="within which they must come"),
    }


def place_params() -> dict[str, Param]:
    return {
        "root": Param(os.environ.get("ONEREC_ROOT", "var"), type="string", description="workspace folder"),
        "source": Param("simulated", type="string", description="name of the source in the workspace"),
    }


def day_fields() -> dict[str, Any]:
    """The same params as arguments of RunPipelineOperator."""
    fields = {
        name: f"{{{{ params.{name} }}}}" for name in ("root", "source", "data", "seed", "fresh_from", "wait_hours")
    }
    return {"day": "{{ ds }}", **fields}


def wait_fields() -> dict[str, Any]:
    """The same params as arguments of WaitForStep."""
    fields = {name: f"{{{{ params.{name} }}}}" for name in ("root", "source", "wait_hours")}
    return {"day": "{{ ds }}", **fields}


def traffic_fields(stage: str) -> dict[str, Any]:
    """The params of a rollout as arguments of RunPipelineOperator."""
    fields = {"percents": f"{stage}_percents", "answers": "rollout_answers", "hours": "rollout_hours"}
    return {name: f"{{{{ params.{param} }}}}" for name, param in {"servers": "servers", **fields}.items()}
