"""
### OneRec: roll production back

**What it does** Moves the channel `production` to the release before, by compare-and-swap: a pointer, under a second,
no retraining. The same as `onerec release rollback` on a machine with the workspace; here for whoever has only
Airflow.

**Inputs** `root`, `source`. **Outputs** the channel; the asset `onerec_production`.

**When it fails** the channel is as it was. "no earlier release": there is nothing to go back to; promote a good
release with `onerec release promote RELEASE`. The command and its error stand in the task's log.

**Running it again** (`rerun/now`) goes ONE FURTHER back: look at `onerec release show RELEASE` of what production
names before you trigger it twice. Nothing is retried by itself.

Not scheduled. Days that production missed meanwhile: `onerec backfill --from DAY --to DAY`; what each day did stands
in `<root>/runs/<day>/progress.jsonl`.
"""

from __future__ import annotations

from airflow.sdk import dag
from assets import PRODUCTION
from house import LIGHT_POOL, hours, house
from operators.command import OnerecCommand
from params import place_params
from tags import Tag


@dag(
    dag_id="onerec_rollback",
    doc_md=__doc__,
    schedule=None,
    params=place_params(),
    **house(Tag.TIER_1, Tag.RERUN_NOW, deadline=hours(0.1), timeout=hours(0.25), retries=0),
)
def onerec_rollback() -> None:
    place = ["--root", "{{ params.root }}", "--source", "{{ params.source }}"]
    OnerecCommand(task_id="rollback", arguments=["release", "rollback", *place], pool=LIGHT_POOL, outlets=[PRODUCTION])


onerec_rollback()
