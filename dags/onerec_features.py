"""
### OneRec: the features of a day

**What it does** The KFP pipeline *features*: ingest the logs of the day, validate them (Great Expectations), build
the four user pathways, and `feast materialize` exactly the day's interval into the online store.

**Inputs** the logs of the day (`data`). **Outputs** partitions `dt=<day>` of the lake and the feature tables, the
online store, the outcomes `ingest`, `validate`, `pathways`, `materialize`; the asset `onerec_features`.

**When it fails** nothing after it starts for that day; users are served yesterday's features and the release in
production. The last `failed` event in `<root>/runs/<day>/progress.jsonl` names the step and its error.

| symptom | do |
|---|---|
| *validate* failed | the logs are bad: read `<root>/runs/<day>/quality`; runbook bad_data, then clear the task |
| "starts from the features of ..." | days are missing: `onerec backfill --from DAY --to DAY` |
| "No space left on device" | runbook disk_full, then clear the task |
| "... is at work here" | another run holds the workspace: wait for it, then clear the task |
| bad recommendations since that day | `onerec release rollback` (moves a pointer, under a second, retrains nothing) |

**Running it again** (`rerun/interval`) is safe: clear the failed task or trigger the day. Finished steps are reused
while inputs, settings and code are unchanged; partitions are exchanged whole.

The day is the logical date, 00:00 UTC; the schedule starts it when it is over.
"""

from __future__ import annotations

from airflow.sdk import dag
from assets import FEATURES
from house import POOL, daily, hours, house
from operators.pipeline import RunPipelineOperator
from params import day_fields, day_params
from tags import Tag


@dag(
    dag_id="onerec_features",
    doc_md=__doc__,
    schedule=daily(),
    params=day_params(),
    **house(Tag.TIER_1, Tag.RERUN_INTERVAL, deadline=hours(24 + 6), timeout=hours(12)),
)
def onerec_features() -> None:
    RunPipelineOperator(task_id="features", pipeline="features", pool=POOL, outlets=[FEATURES], **day_fields())


onerec_features()
