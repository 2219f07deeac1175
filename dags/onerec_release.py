"""
### OneRec: judge the release of a day and bring it into production

**What it does** Waits for the published release of the day; then the KFP pipeline *release*: a real server answers
ten users and every item is checked (*serve*), the gates judge it against production and move `candidate`, and
`production` when all of them pass (*promote*), the day's report is written (*report*).

**Inputs** the outcomes of the day and the release. **Outputs** the recorded decision with its numbers, the channels,
`<root>/runs/<day>/report.html`; the asset `onerec_production`.

**When it fails** production keeps its release. The last `failed` event in `<root>/runs/<day>/progress.jsonl` names
the step and its error; its trace is in `logs/<step>.log`, Triton's own in `logs/triton.log`.

| symptom | do |
|---|---|
| waiting for hours | `onerec_training` of the day is late or failed: mend that; this goes on by itself |
| green, but production did not move | a gate failed: `onerec release show RELEASE`; promote it by hand or leave it |
| *serve* failed | the release does not load or answers illegal items: never promote it by hand; runbook bad_release |
| bad recommendations in production | trigger `onerec_rollback`, or `onerec release rollback` (a pointer, at once) |
| days are missing | `onerec backfill --from DAY --to DAY`; a channel never moves back to an earlier day |

**Running it again** (`rerun/interval`) is safe: the same release is judged by the same numbers, and a channel that
names it already stays as it is.

The day is the logical date, 00:00 UTC; the schedule starts it when it is over.
"""

from __future__ import annotations

from airflow.sdk import dag
from assets import PRODUCTION
from house import LIGHT_POOL, POOL, daily, hours, house
from operators.pipeline import RunPipelineOperator
from operators.wait import WaitForStep
from params import day_fields, day_params, wait_fields
from tags import Tag


@dag(
    dag_id="onerec_release",
    doc_md=__doc__,
    schedule=daily(),
    params=day_params(),
    **house(Tag.TIER_1, Tag.RERUN_INTERVAL, deadline=hours(24 + 18), timeout=hours(30)),
)
def onerec_release() -> None:
    ready = WaitForStep(task_id="wait_for_release", step="publish", pool=LIGHT_POOL, **wait_fields())
    ready >> RunPipelineOperator(task_id="release", pipeline="release", pool=POOL, outlets=[PRODUCTION], **day_fields())


onerec_release()
