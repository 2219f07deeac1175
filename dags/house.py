"""What all DAGs share: owner, retries, timeouts, pools, deadlines, and what a failure says. Wiring only.

@dag(dag_id="onerec_features", doc_md=__doc__, params=day_params(), **house(Tag.TIER_1, deadline=hours(6)))
"""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

from airflow.sdk import CronDataIntervalTimetable
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from alerts import deadline_missed, task_failed
from tags import Tag

OWNER = "recommender"
POOL, LIGHT_POOL = "onerec_pipelines", "onerec_light"  # their slots: pools.json, which `airflow pools import` reads


def hours(number: float) -> dt.timedelta:
    return dt.timedelta(hours=number)


def daily(at: str = "0 0 * * *") -> CronDataIntervalTimetable:
    """A run a calendar day (UTC), started when the day is over."""
    return CronDataIntervalTimetable(at, timezone="UTC")


def house(tier: Tag, rerun: Tag, *, deadline: dt.timedelta, timeout: dt.timedelta, retries: int = 2) -> dict[str, Any]:
    """Arguments of every DAG. `deadline`: from the start of the day to done, then an alert; `timeout`: of a run,
    which is failed then. (From the logical date: in 3.3 no run whose deadline counts from its queueing can be cleared.)

    A retry is for a machine that went away: what a pipeline finished is reused, and what is wrong with the data fails
    again at once. Steps never start twice at a time, since each day has one run and runs do not overlap.
    """
    until = os.environ.get("ONEREC_SCHEDULE_UNTIL")  # a scheduler that is there for a backfill schedules nothing else
    local = not os.environ.get("ONEREC_KFP_HOST")
    alert = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
        interval=deadline,
        callback=SyncCallback(deadline_missed, kwargs={"hours": deadline / hours(1)}),
    )
    return {
        "start_date": dt.datetime(2022, 1, 1, tzinfo=dt.UTC),
        "end_date": dt.datetime.fromisoformat(f"{until}T00:00+00:00") if until else None,
        "catchup": False,
        "max_active_runs": 1,
        "dagrun_timeout": timeout,
        "tags": [tier, rerun],
        # Old days are late by nature, and 3.3.2's scheduler ends with a StaleDataError when a late run is cleared while
        # it handles the missed deadline: seen in a backfill, which then waited for ever.
        "deadline": None if until else alert,
        "default_args": {
            "owner": OWNER,
            # On one machine a step that failed once fails again, and a second try would hide it for hours.
            "retries": 0 if local else retries,
            "retry_delay": dt.timedelta(minutes=2),
            "retry_exponential_backoff": True,
            "max_retry_delay": dt.timedelta(minutes=30),
            "execution_timeout": timeout,
            "on_failure_callback": task_failed,
        },
    }
